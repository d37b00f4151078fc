"""Several results side by side on the prompts they share: over checkpoints, and one draft against another."""

import html
from collections.abc import Sequence

from dflash.errors import UserError
from dflash.evaluation.breakdown import Estimate, check_alike, paired, tau_of
from dflash.evaluation.report_file import Evaluation
from workbench.acceptance_view import Figure, words
from workbench.components import table_behind
from workbench.figures.breakdown import tau_over_results, tau_pairs

MOST = 12  # results at once


def over_results(results: Sequence[tuple[str, Evaluation]]) -> Figure:
    """Tau of (name, result) pairs on the prompts that all share; checkpoints of one run come in their order.

    A sentence stands in its place where one was decoded with other settings than the first, or no prompt is shared.
    """
    first_name, first = results[0]
    for name, result in results[1:]:
        try:
            check_alike(first, result)
        except UserError as error:
            return None, words(f"{first_name} and {name}: {error}")
    shared = set.intersection(*({(a.prompt, a.turn) for a in result.answers} for _, result in results))
    if not shared:
        return None, words(
            "These results share no prompt: evaluate the drafts on the same prompt sets to compare them."
        )
    if len({name.partition("/")[0] for name, _ in results}) == 1:
        results = sorted(results, key=lambda pair: pair[0])
    estimates: dict[str, Estimate] = {}
    for name, result in results:
        kept = [a for a in result.answers if (a.prompt, a.turn) in shared]
        estimates[name] = tau_of(kept)
    rows = [
        [name, "–" if e.value is None else f"{e.value:.2f}", _span(e), f"{e.steps:,}", e.prompts]
        for name, e in estimates.items()
    ]
    return tau_over_results(estimates), table_behind("Table", ["result", "tau", "95 %", "steps", "prompts"], rows)


def one_against_another(first: tuple[str, Evaluation], second: tuple[str, Evaluation]) -> tuple[str, Figure]:
    """The comparison in one sentence, and its figure."""
    (first_name, a), (second_name, b) = first, second
    try:
        result = paired(a, b)
    except UserError as error:
        return "", (None, words(str(error)))
    pairs = [
        (f"{x.set} {x.id}".strip(), x.tau, y.tau) for x, y in result.pairs if x.tau is not None and y.tau is not None
    ]
    rows = [[name, f"{one:.2f}", f"{two:.2f}", f"{two - one:+.2f}"] for name, one, two in pairs]
    figure = tau_pairs(pairs, first_name, second_name)
    table = table_behind("Table", ["prompt", first_name, second_name, "difference"], rows)
    return _sentence(first_name, second_name, result), (figure, table)


def _sentence(first: str, second: str, result) -> str:
    difference = result.difference
    if difference.value is None:
        return ""
    value = f"{difference.value:+.2f}"
    interval = (
        f", 95 % interval {difference.interval[0]:+.2f} to {difference.interval[1]:+.2f}" if difference.interval else ""
    )
    sure = bool(difference.interval) and not difference.interval[0] <= 0 <= difference.interval[1]
    verdict = "a difference beyond chance" if sure else "within what chance alone may do"
    return html.escape(
        f"{second} yields {value} tokens per forward against {first}{interval}: {verdict}. Over {difference.prompts} "
        f"shared prompts it is better on {result.better}, equal on {result.equal}, worse on {result.worse}."
    )


def _span(estimate: Estimate) -> str:
    return f"{estimate.interval[0]:.2f}–{estimate.interval[1]:.2f}" if estimate.interval else "one prompt"
