"""What-if and block sizes: what a step costs, what tau buys, and which block size is fastest here."""

import html
from collections.abc import Sequence

from dflash.evaluation.block_sizes_file import BlockSizes
from dflash.evaluation.breakdown import tau_of
from dflash.evaluation.report_file import Evaluation
from dflash.evaluation.speedup import StepCost
from workbench.acceptance_view import Figure, machine_words
from workbench.components import table_behind
from workbench.figures.whatif import Dot, iso_speedup, speed_by_block_size, step_costs


def measured_dot(name: str, result: Evaluation) -> Dot | None:
    """Where a result lies in the plane of cost and tau; None where nothing was decoded."""
    tau, parts = tau_of(result.answers).value, result.step_ms
    if tau is None or not parts.get("target") or None in parts.values():
        return None
    return Dot(name, StepCost(parts["target"], parts["draft"], parts["verify"], parts["overhead"]), tau, result.speedup)


def size_dots(sizes: BlockSizes | None) -> list[Dot]:
    """A dot per block size."""
    return [Dot(f"block size {row.block_size}", row.cost, row.tau, row.speedup) for row in sizes.rows] if sizes else []


def whatif(supposed: Dot, measured: Sequence[Dot]) -> tuple[str, Figure]:
    """The answer in large type, and the plane of equal speed-ups.

    Raises:
        UserError: tau is below 1.
    """
    cost = supposed.cost
    speedup = cost.speedup(supposed.tau)
    formula = (
        f"{supposed.tau:.2f} × {cost.target:.1f} ms / ({cost.draft:.1f} + {cost.verify:.1f} + {cost.overhead:.1f}) ms"
    )
    answer = (
        f'<div class="df-whatif"><p class="df-big">{speedup:.2f}<small>×</small></p>'
        '<p class="df-note" title="speed-up = tau * t_target / (t_draft + t_verify + t_overhead)">'
        f"{html.escape(formula)}</p>"
        f'<p class="df-note">Nothing is gained below tau {cost.break_even_tau:.2f}: that is what a step costs, in '
        "tokens of the target alone.</p></div>"
    )
    dots = [supposed, *measured]
    rows = [
        [
            dot.name,
            *(f"{value:.1f}" for value in (dot.cost.target, dot.cost.draft, dot.cost.verify, dot.cost.overhead)),
            f"{dot.tau:.2f}",
            f"{dot.cost.speedup(dot.tau):.2f}×",
            "–" if dot.speedup is None else f"{dot.speedup:.2f}×",
        ]
        for dot in dots
    ]
    columns = ["", "target ms", "draft ms", "verify ms", "overhead ms", "tau", "by the formula", "measured"]
    return answer, (iso_speedup(supposed, measured), table_behind("Table", columns, rows))


def block_sizes(found: tuple[BlockSizes, dict[str, str] | None] | None) -> tuple[str, Figure | None, Figure | None]:
    """The best block size in a sentence, the speed of every size, and what a step costs.

    Without a measurement the sentence says so, and there are no figures.
    """
    if found is None:
        return "Nothing was measured yet: press the button to decode a few prompts at every block size.", None, None
    sizes, recorded = found
    best = sizes.best
    where = machine_words(sizes.machine)
    if recorded:
        where = (
            f"recorded on {recorded.get('machine') or where}, {recorded['date']}; not this machine until you measure it"
        )
    sentence = html.escape(
        f"Block size {best.block_size} is fastest: {best.speedup:.2f}× the target alone (draft {sizes.draft_name}, "
        f"{sizes.settings.get('prompts')} prompts, {where})."
    )
    rows = [
        [
            row.block_size,
            f"{row.speedup:.2f}×",
            f"{row.speedup_range[0]:.2f}–{row.speedup_range[1]:.2f}×",
            f"{row.cost.speedup(row.tau):.2f}×",
            f"{row.tau:.2f}",
            f"{row.steps:,}",
        ]
        for row in sizes.rows
    ]
    columns = ["block size", "measured", "lowest–highest prompt", "by the formula", "tau", "steps"]
    costs = [
        [
            row.block_size,
            *(f"{value:.1f}" for value in (row.cost.draft, row.cost.verify, row.cost.overhead, row.cost.step)),
        ]
        for row in sizes.rows
    ]
    return (
        sentence,
        (speed_by_block_size(sizes.rows), table_behind("Table", columns, rows)),
        (
            step_costs(sizes.rows),
            table_behind("Table, medians", ["block size", "draft ms", "verify ms", "overhead ms", "step ms"], costs),
        ),
    )
