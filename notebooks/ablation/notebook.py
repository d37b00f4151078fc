"""What notebooks 02 to 04 call: their results in the chosen setting, where those come from, tables, figures on show."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown, display

from ablation.conclusion import conclusion
from ablation.results import RunResult, read_results
from ablation.settings import Ablation
from ablation.statistics import Estimate, slot_accuracy, tau, tau_difference, values_of, verdict
from dflash.errors import UserError
from workbench.figures.ablation import Measured

RESULTS = Path(__file__).resolve().parents[1] / "results"


def results_of(ablation: Ablation, setting: str) -> list[RunResult]:
    """The committed results ("recorded"), or those of tiny runs that are made now ("small").

    Raises:
        UserError: there is no such setting, or a run failed.
    """
    if setting == "recorded":
        return read_results(RESULTS / f"{ablation.name}.jsonl")
    if setting == "small":
        from ablation.small import small_results  # loads torch, which recorded results do without

        return small_results(ablation)
    raise UserError(f"SETTING = {setting!r} is unknown: choose 'recorded' or 'small'.")


def origin(ablation: Ablation, results: Sequence[RunResult]) -> None:
    """Print what made the results: commands, dates, machine, versions; and what of the plan has no run yet."""
    first, machine = results[0], results[0].machine
    print("first made with:", *(f"  {command}" for command in first.commands), sep="\n")
    print("dates:", ", ".join(sorted({result.date for result in results})))
    print("seeds:", ", ".join(map(str, sorted({result.seed for result in results}))))
    print("machine:", f"{machine['cpu']}, {machine['cpu_count']} cores shared with other jobs, one thread")
    print("versions:", f"torch {machine['packages']['torch']}, commit {(machine['git_commit'] or 'unknown')[:7]}")
    if missing := [label(value) for value in ablation.values if value not in values_of(results)]:
        print(f"not run yet: {ablation.setting} =", ", ".join(missing))


def comparison(ablation: Ablation, results: Sequence[RunResult], used: int) -> pd.DataFrame:
    """One row per value of the setting: tau with interval and n, and its difference from the baseline."""
    rows = []
    for value in values_of(results):
        own, difference = tau(results, value, used), tau_difference(results, value, ablation.baseline, used=used)
        runs = [result for result in results if result.value == value]
        rows.append(
            {
                ablation.setting: label(value),
                "seeds": len(own.seeds),
                "conversations": own.conversations,
                "blocks judged": own.blocks,
                "blocks trained on per step": round(sum(run.blocks_per_step for run in runs) / len(runs)),
                "tau": f"{own.value:.3f}",
                "95 % interval": interval(own),
                "single seeds": "  ".join(f"{single:.3f}" for single in own.seeds.values()),
                f"less that of {label(ablation.baseline)}": _difference(ablation, value, difference),
                "reading": "baseline" if value == ablation.baseline else verdict(difference),
            }
        )
    return pd.DataFrame(rows).set_index(ablation.setting)


def slot_table(ablation: Ablation, results: Sequence[RunResult], used: int) -> pd.DataFrame:
    """How often each slot is right by itself, in percent, one row per value."""
    rows = {label(value): slot_accuracy(results, value, used) for value in values_of(results)}
    table = pd.DataFrame.from_dict(rows, orient="index").mul(100).round(1)
    table.columns = [f"slot {slot}, %" for slot in range(1, len(table.columns) + 1)]
    return table.rename_axis(ablation.setting)


def differences(ablation: Ablation, results: Sequence[RunResult], used: int) -> list[Measured]:
    """Tau of every value less the baseline's, for the figure: paired, so that intervals can be read against zero."""
    return [
        measured(label(value), tau_difference(results, value, ablation.baseline, used=used))
        for value in values_of(results)
    ]


def measured(name: str, own: Estimate) -> Measured:
    count = f"n = {own.conversations} conversations, {own.blocks} blocks, {len(own.seeds)} seeds"
    return Measured(name, own.value, own.low, own.high, tuple(own.seeds.values()), count)


def conclude(ablation: Ablation, results: Sequence[RunResult], used: int) -> None:
    """Display the conclusion's sentences."""
    display(Markdown("\n".join(f"- {sentence}" for sentence in conclusion(ablation, results, used))))


def label(value: float) -> str:
    return f"{value:g}"


def interval(own: Estimate) -> str:
    return f"[{own.low:.3f}, {own.high:.3f}]"


def show(figure: go.Figure) -> None:
    """Display a figure on white ground, so that it reads on dark notebooks too; nothing is fetched from elsewhere."""
    shown = go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white", width=820)
    bundle = {"application/vnd.plotly.v1+json": json.loads(shown.to_json()), "text/plain": shown.layout.title.text}
    display(bundle, raw=True)


def _difference(ablation: Ablation, value: float, difference: Estimate) -> str:
    return "" if value == ablation.baseline else f"{difference.value:+.3f} {interval(difference)}"
