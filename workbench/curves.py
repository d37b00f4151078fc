"""Which curves a run has: the question of each, its unit, and what is drawn in it. The live page and the figures of
notebooks and exports draw the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from dflash.evaluation.acceptance import Proportion
from workbench.decimate import Thinned, thin
from workbench.metric_lines import is_number
from workbench.run_series import RunSeries

Span = tuple[float, float]  # first and last step


@dataclass(frozen=True)
class Line:
    """A column of a run's records as a line."""

    kind: str
    column: str
    label: str
    style: str  # "line": many points, drawn with the band they cover; "dots": measurements; "diamonds": decoding


@dataclass(frozen=True)
class Panel:
    """One chart over steps."""

    key: str
    question: str
    unit: str
    explains: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Curve:
    """A line of one run, thinned for drawing. `run` is its place among the runs; `slot`, from 1, where it is of one."""

    run: int
    label: str
    style: str
    points: Thinned
    slot: int | None = None


PANELS = (
    Panel(
        "loss",
        "Is it still learning?",
        "loss (nats per token)",
        "Weighted cross entropy of the drafted slots; held out: on conversations that are not trained on.",
        (Line("train", "loss", "training", "line"), Line("validation", "loss", "held out", "dots")),
    ),
    Panel(
        "tau",
        "How many tokens per forward?",
        "tau (tokens)",
        "Estimate: 1 + how many slots are right in a row on given text. Decoded: measured by really decoding prompts; "
        "this is what serving sees.",
        (
            Line("train", "tau_estimate", "estimated, training", "line"),
            Line("validation", "tau_estimate", "estimated, held out", "dots"),
            Line("decode", "decoded_tau", "decoded", "diamonds"),
        ),
    ),
    Panel(
        "lr",
        "How fast may it change?",
        "learning rate",
        "What the schedule gave each step.",
        (Line("train", "lr", "learning rate", "line"),),
    ),
    Panel(
        "grad",
        "Are its steps calm?",
        "gradient norm",
        "Before clipping. A batch whose loss or gradient is not finite is skipped.",
        (Line("train", "grad_norm", "gradient norm", "line"),),
    ),
    Panel(
        "speed",
        "How fast does it train?",
        "tokens/s",
        "Tokens of all ranks since the record before; validation, decoding and saving are not counted.",
        (Line("train", "tokens_per_s", "tokens/s", "line"),),
    ),
    Panel(
        "wait",
        "Does it wait for data?",
        "% of the time",
        "Share of the time in which the ranks had no micro-batch to work on, on average.",
        (Line("train", "data_wait_percent", "waiting", "line"),),
    ),
    Panel(
        "online",
        "What is on its way to it?",
        "documents",
        "Online features: documents at the servers, and documents that are here and wait for the trainer.",
        (
            Line("train", "online.in_flight", "at the servers", "line"),
            Line("train", "online.ready", "ready", "line"),
        ),
    ),
    Panel(
        "memory",
        "How much memory does it hold?",
        "GiB",
        "The most that the fullest rank has held so far: of its GPU, or of the host where it computes there.",
        (Line("train", "memory_gib", "peak", "line"),),
    ),
)
SLOTS = Panel(
    "slots",
    "Which slots does it get right?",
    "% right",
    "Share of each slot's tokens that the draft would guess, given everything before the block; of the first run.",
    (),
)
PROFILE = Panel(
    "profile",
    "How far ahead does it see?",
    "% right",
    "The same at the last validation (training, where there was none), with 95 % intervals.",
    (),
)


def curves(panel: Panel, runs: Sequence[RunSeries], points: int, span: Span | None = None) -> list[Curve]:
    """What a chart over steps shows of some runs; empty where none of them recorded it."""
    if panel is SLOTS:
        return slot_curves(runs[0], points, span) if runs else []
    found = []
    for place, run in enumerate(runs):
        for line in panel.lines:
            x, y = run.column(line.kind, line.column)
            if len(x):
                found.append(Curve(place, line.label, line.style, thin(x, y, points, span)))
    return found


def slot_curves(run: RunSeries, points: int, span: Span | None = None) -> list[Curve]:
    """Accuracy of every slot in percent: on held-out rows where that was measured twice, else of training."""
    kind = "validation" if len(run.column("validation", "slot_accuracy/1")[0]) > 1 else "train"
    found = []
    for slot in range(1, run.slots(kind) + 1):
        x, y = run.column(kind, f"slot_accuracy/{slot}")
        if len(x):
            thinned = thin(x, 100 * y, points, span)
            # Bands of many slots would hide one another.
            found.append(Curve(0, f"slot {slot}", "line", Thinned(thinned.x, thinned.y), slot))
    return found


def slot_profile(run: RunSeries) -> list[Proportion]:
    """Right guesses per slot, counted, from the last validation (training, where there was none); maybe none at all."""
    record = run.last.get("validation") or run.last.get("train") or {}
    shares, counts = record.get("slot_accuracy") or [], record.get("slot_count") or []
    return [
        Proportion(round(share * count), round(count)) if is_number(share) and is_number(count) else Proportion(0, 0)
        for share, count in zip(shares, counts, strict=False)
    ]
