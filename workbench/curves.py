"""Which curves a run has: the question of each, its unit, and what is drawn in it. The live page and the figures of
notebooks and exports draw the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    style: str  # "line", "dashed", "dotted": many points, with the band they cover; "dots": measurements; "diamonds": decoding


@dataclass(frozen=True)
class Panel:
    """One chart over steps."""

    key: str
    question: str
    unit: str
    explains: str
    lines: tuple[Line, ...]
    per: float = 1.0  # what its unit is of the recorded one: 1e6 where bytes are shown as MB


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
        "Online features, of all ranks: documents that servers work on, those that wait for a server, another try or "
        "being read, and those that are here and wait for the trainer.",
        (
            Line("train", "online.in_flight", "at the servers", "line"),
            Line("train", "online.queued", "queued", "dotted"),
            Line("train", "online.ready", "ready", "dashed"),
        ),
    ),
    Panel(
        "served",
        "How fast do the servers answer?",
        "tokens/s",
        "Online features: tokens of the documents that came from all servers, since the record before.",
        (Line("train", "online.tokens_per_s", "served", "line"),),
    ),
    Panel(
        "store",
        "How full is the store?",
        "MB",
        "Online features: what lies in it, as its master counted a few seconds before, and what the servers lend it.",
        (
            Line("train", "online.store_used_bytes", "used", "line"),
            Line("train", "online.store_capacity_bytes", "lent by the servers", "dashed"),
        ),
        per=1e6,
    ),
    Panel(
        "moved",
        "How much goes through the store?",
        "MB/s",
        "Online features: bytes that the ranks read from it, since the record before.",
        (Line("train", "online.bytes_per_s", "read", "line"),),
        per=1e6,
    ),
    Panel(
        "memory",
        "How much memory does it hold?",
        "GiB",
        "The most that the fullest rank has held so far: of its GPU, or of the host where it "
        "computes there, which counts files mapped into memory, such as a feature cache, as well.",
        (Line("train", "memory_gib", "peak", "line"),),
    ),
)
SLOTS = Panel(
    "slots",
    "Which slots does it get right?",
    "% right",
    "Share of each slot's tokens that the draft would guess, given everything before the block.",
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
    if panel.key == SLOTS.key:
        return slot_curves(runs[0], points, span) if runs else []
    found = []
    for place, run in enumerate(runs):
        for line in panel.lines:
            x, y = run.column(line.kind, line.column)
            if len(x):
                found.append(Curve(place, line.label, line.style, thin(x, y / panel.per, points, span)))
    return found


def about_runs(panel: Panel, runs: Sequence[RunSeries]) -> Panel:
    """The panel in words and units for these runs: the slots are drawn of the first one alone, which it then names."""
    if panel is SLOTS and len(runs) > 1:
        return replace(panel, question=f"Which slots does {runs[0].name} get right?")
    return _in_readable_unit(panel, runs)


def _in_readable_unit(panel: Panel, runs: Sequence[RunSeries]) -> Panel:
    """The panel with GB in place of MB where these runs have so many; one that shows no bytes as it is."""
    columns = (run.column(line.kind, line.column)[1] for run in runs for line in panel.lines)
    if panel.per != 1e6 or max((y.max() for y in columns if len(y)), default=0) < 1e9:
        return panel
    return replace(panel, unit=panel.unit.replace("MB", "GB"), per=1e9)


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
