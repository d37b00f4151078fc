"""What the Runs page shows, as plain values: one function for each of its parts, the same for page and API."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dflash.config import load_config
from dflash.errors import UserError
from dflash.online.balance import verdict
from dflash.online.planner import ranks_fit
from workbench.config_diff import differences
from workbench.curves import PANELS, PROFILE, SLOTS, Curve, Panel, Span, about_runs, curves, slot_profile
from workbench.figures.palette import RUNS, slot_colour
from workbench.metric_lines import is_number
from workbench.run_checkpoints import checkpoints
from workbench.run_reader import RunsRoot
from workbench.run_rows import RunRow
from workbench.run_series import RunSeries
from workbench.run_summary import duration

POINTS = 360  # of a curve on the page: about one per pixel
MOST_RUNS = len(RUNS)  # over one another; each has a colour
_DIGITS = 5  # significant ones that a picture needs


def stamp(value: Any) -> str:
    """Equal for equal values: what a page sends back so that it is answered only when something is new."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def table_view(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    """The table of runs."""
    return [row_view(row) for row in rows]


def row_view(row: RunRow) -> dict[str, Any]:
    """One run of the table."""
    summary = row.summary
    left = None if summary.eta_seconds is None else duration(summary.eta_seconds)
    return {
        "name": summary.name,
        "state": summary.state,
        "message": " ".join(filter(None, (summary.message, summary.problem, row.notes.problem))),
        "step": summary.step,
        "max_steps": summary.max_steps,
        "progress": summary.progress,
        "eta_seconds": summary.eta_seconds,
        "left": left,
        "loss": summary.loss,
        "validation_loss": summary.validation_loss,
        "tau_estimate": summary.tau_estimate,
        "decoded_tau": summary.decoded_tau,
        "tokens_per_s": summary.tokens_per_second,
        "started": summary.started,
        "tags": list(row.notes.tags),
        "can_stop": row.can_stop,
        "can_abort": row.can_abort,
        "can_resume": row.can_resume,
        "can_queue": row.can_queue,
    }


def curves_view(runs: Sequence[RunSeries], span: Span | None = None, points: int = POINTS) -> dict[str, Any]:
    """All charts of some runs; those that none of them has values for are left out."""
    chosen = [about_runs(panel, runs) for panel in (*PANELS[:2], SLOTS, *PANELS[2:])]
    panels = [_panel_view(panel, curves(panel, runs, points, span), len(runs)) for panel in chosen]
    panels.insert(3, _profile_view(runs))
    ends = [run.steps for run in runs if run.steps]
    return {
        "runs": [{"name": run.name, "colour": RUNS[place], "records": run.records} for place, run in enumerate(runs)],
        "span": [min(first for first, _ in ends), max(last for _, last in ends)] if ends else None,
        "panels": [panel for panel in panels if panel["curves"]],
    }


def balance_view(run: RunSeries, config_file: Path) -> dict[str, Any]:
    """Who waits for whom, in words. `config_file`: that of the run, which says what splits of the GPUs there can be."""
    if any("online" in record for record in run.recent):
        judged = verdict(run.recent, ranks_fit=_ranks_of(config_file))
        return {"words": judged.words, "bottleneck": judged.bottleneck}
    waits = [record["data_wait_percent"] for record in run.recent if is_number(record.get("data_wait_percent"))][-20:]
    if not waits:
        return {"words": "Nothing was recorded yet, so nothing can be said.", "bottleneck": "unknown"}
    wait = float(np.mean(waits))
    side = "The trainer waits for its features" if wait >= 5 else "Nobody waits: the trainer is busy"
    return {
        "words": f"{side}. It waited {wait:.1f} % of its time, mean of the last {len(waits)} records.",
        "bottleneck": "data" if wait >= 5 else "trainer",
    }


def _ranks_of(config_file: Path) -> Callable[[int], bool]:
    """Which numbers of ranks a config allows; any, where it cannot be read or is of another version."""
    try:
        config = load_config(config_file)
    except UserError:
        return lambda ranks: True
    return lambda ranks: ranks_fit(config, ranks)


def compare_view(root: RunsRoot, names: Sequence[str]) -> dict[str, Any]:
    """Settings that differ between runs."""
    trees, titles, problems = [], [], []
    for name in names:
        try:
            trees.append(root.settings(name))
            titles.append(name)
        except UserError as error:
            problems.append(str(error))
    return {
        "runs": titles,
        "rows": [[setting, *values] for setting, values in differences(trees)] if len(trees) > 1 else [],
        "problem": " ".join(problems),
    }


def checkpoints_view(run: Path) -> list[dict[str, Any]]:
    """The checkpoints of a run, newest first."""
    return [vars(row) for row in checkpoints(run)]


def text_of(path: Path, most: int = 40_000) -> str:
    """A small text file of a run folder for reading; empty where it is missing, cut where it is not small."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(most + 1)
    except OSError:
        return ""
    return text if len(text) <= most else f"{text[:most]}\n… (the rest is in {path})"


def _panel_view(panel: Panel, drawn: Sequence[Curve], runs: int = 1) -> dict[str, Any]:
    return {
        "key": panel.key,
        "question": panel.question,
        "unit": panel.unit,
        "explains": panel.explains,
        "axis": "step",
        "curves": [
            {
                "run": curve.run,
                "label": curve.label,
                "style": curve.style,
                "colour": slot_colour(curve.slot, len(drawn), runs) if curve.slot else RUNS[curve.run],
                "x": _short(curve.points.x),
                "y": _short(curve.points.y),
                "low": None if curve.points.low is None else _short(curve.points.low),
                "high": None if curve.points.high is None else _short(curve.points.high),
            }
            for curve in drawn
        ],
    }


def _profile_view(runs: Sequence[RunSeries]) -> dict[str, Any]:
    view = _panel_view(PROFILE, []) | {"axis": "slot"}
    for place, run in enumerate(runs):
        shares = [(slot, share) for slot, share in enumerate(slot_profile(run), 1) if share.total]
        if not shares:
            continue
        view["curves"].append(
            {
                "run": place,
                "label": f"{'held out' if 'validation' in run.last else 'training'}, n = {shares[0][1].total:,}",
                "style": "interval",
                "colour": RUNS[place],
                "x": [slot for slot, _ in shares],
                "y": [round(100 * share.value, 2) for _, share in shares],
                "low": [round(100 * share.interval[0], 2) for _, share in shares],
                "high": [round(100 * share.interval[1], 2) for _, share in shares],
            }
        )
    return view


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") if abs(value) < 1e5 else round(float(value)) for value in values]

