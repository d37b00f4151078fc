"""The numbers of a run as columns: what its curves are drawn from, by pages and notebooks alike."""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from workbench.metric_lines import Cursor, Record, is_number, read_on
from workbench.run_reader import RunsRoot

# What is kept of each kind of record. Lists (a value per slot) have one column per entry; a point leads into a part.
COLUMNS = {
    "train": (
        "loss",
        "tau_estimate",
        "lr",
        "grad_norm",
        "tokens_per_s",
        "data_wait_percent",
        "memory_gib",
        "slot_accuracy",
        "online.in_flight",
        "online.queued",
        "online.ready",
        "online.tokens_per_s",
        "online.bytes_per_s",
        "online.store_used_bytes",
        "online.store_capacity_bytes",
    ),
    "validation": ("loss", "tau_estimate", "slot_accuracy"),
    "decode": ("decoded_tau",),
}
_NOTHING = float("nan")
_RECENT = 400  # records kept whole: for those who judge how a run does now


class RunSeries:
    """Columns over steps of one run, and its newest records as they were written."""

    def __init__(self, name: str, records: Iterable[Record] = ()) -> None:
        """`name` is what legends call it."""
        self.name = name
        self.last: dict[str, Record] = {}  # by kind; of training, the last step that was not skipped
        self.recent: list[Record] = []
        self.skipped: list[int] = []  # steps whose batch was left out, since loss or gradient was not finite
        self._steps: dict[str, array] = {}
        self._tables: dict[str, dict[str, _Table]] = {}
        self.extend(records)

    @classmethod
    def read(cls, run: Path | str) -> "RunSeries":
        """All of a run folder's metrics.jsonl.

        Raises:
            OSError: there is none.
        """
        return cls(Path(run).name, read_on(Path(run) / "metrics.jsonl")[0])

    def extend(self, records: Iterable[Record]) -> None:
        """Take in newer records."""
        fresh: list[Record] = []
        for record in records:
            kind = record.get("kind")
            if kind not in COLUMNS:
                continue
            fresh.append(record)
            if record.get("skipped"):
                self.skipped.append(record["step"])
            else:
                self.last[kind] = record
                self._append(kind, record)
        self.recent = (self.recent + fresh)[-_RECENT:]

    def column(self, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values where there is one; a slot's column is called `slot_accuracy/1`. Empty when unknown."""
        name, _, slot = name.partition("/")
        table, place = self._tables.get(kind, {}).get(name), int(slot or 1) - 1
        if table is None or place >= table.width:
            return np.empty(0), np.empty(0)
        steps, numbers = np.array(self._steps[kind]), table.column(place)
        there = np.isfinite(numbers)
        return steps[there], numbers[there]

    def slots(self, kind: str, name: str = "slot_accuracy") -> int:
        """How many slots a column of lists has."""
        table = self._tables.get(kind, {}).get(name)
        return table.width if table else 0

    @property
    def records(self) -> int:
        """How many records are in the columns."""
        return sum(map(len, self._steps.values()))

    @property
    def steps(self) -> tuple[float, float] | None:
        """First and last step of all columns."""
        ends = [end for steps in self._steps.values() for end in (steps[0], steps[-1])]
        return (min(ends), max(ends)) if ends else None

    def _append(self, kind: str, record: Record) -> None:
        steps = self._steps.setdefault(kind, array("d"))
        tables = self._tables.setdefault(kind, {})
        steps.append(record["step"])
        for name in COLUMNS[kind]:
            part, _, key = name.rpartition(".")
            place = record.get(part) if part else record
            value = place.get(key) if isinstance(place, dict) else None
            values = value if isinstance(value, list) else [value]
            numbers = [entry if is_number(entry) else _NOTHING for entry in values]
            table = tables.get(name)
            if table is None:
                if value is None:
                    continue  # most runs have no online part
                # First seen now: nothing for all records before.
                table = tables[name] = _Table(len(numbers), len(steps) - 1)
            table.append(numbers)


class _Table:
    """Rows of equally many numbers, in one piece of memory: a list per record costs one call."""

    def __init__(self, width: int, empty_rows: int) -> None:
        self.width = width
        self._numbers = array("d", [_NOTHING]) * (width * empty_rows)

    def append(self, numbers: list[float]) -> None:
        if len(numbers) != self.width:  # missing in this record, or of a draft with another block size
            numbers = (numbers + [_NOTHING] * self.width)[: self.width]
        self._numbers.extend(numbers)

    def column(self, place: int) -> np.ndarray:
        return np.array(self._numbers).reshape(-1, self.width)[:, place]


class SeriesStore:
    """The series of the runs that are looked at, each read on from where it stood. Shared by all visitors: a cache."""

    def __init__(self, root: RunsRoot, keep: int = 16) -> None:
        self._root, self._keep = root, keep
        self._held: OrderedDict[str, tuple[RunSeries, Cursor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[RunSeries, Cursor]:
        """A run's series as of now, and the cursor behind it: the same cursor means the same series.

        Raises:
            UserError: there is no such run (any more), or its metrics cannot be read.
        """
        with self._lock:
            series, cursor = self._held.pop(name, (RunSeries(name), Cursor()))
            records, after = self._root.metrics(name, cursor)
            if after.restarts != cursor.restarts:
                series = RunSeries(name)
            series.extend(records)
            self._held[name] = (series, after)
            while len(self._held) > self._keep:
                self._held.popitem(last=False)
            return series, after
