"""Trackers keep whatever they are sent, and a run that was killed makes its last steps again: each is sent once."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dflash.training.metrics import MetricSink

_ORDER = ("train", "validation", "decode")  # of the records of one batch


class LoggedOnce:
    """A tracker that remembers in the run folder how far it was told, and drops what a resumed run tells it again.

    The steps that are made again are the same ones (bit for bit on as many ranks), so nothing is lost.
    """

    def __init__(self, sink: "MetricSink", cursor: Path, *, afresh: bool) -> None:
        """`cursor`: the file to remember it in. `afresh`: the tracker begins a new run, whatever it was told before."""
        self._sink, self._cursor = sink, cursor
        if afresh:
            cursor.unlink(missing_ok=True)
        self._last = self._read()

    def log(self, record: dict[str, Any], step: int) -> None:
        """As the tracker's own, for records that lie behind the last one it was sent."""
        kind = record.get("kind", _ORDER[0])
        place = [record.get("batch", step), _ORDER.index(kind) if kind in _ORDER else len(_ORDER)]
        if place <= self._last:
            return
        self._sink.log(record, step)
        self._last = place
        # In one step, but not brought to disk: it has to survive this process, not a power cut, and comes every step.
        staging = self._cursor.with_name(f"{self._cursor.name}.tmp")
        staging.write_text(json.dumps(place), encoding="utf-8")
        os.replace(staging, self._cursor)

    def close(self) -> None:
        self._sink.close()

    def _read(self) -> list[int]:
        try:
            batch, kind = json.loads(self._cursor.read_text(encoding="utf-8"))
            return [int(batch), int(kind)]
        except (OSError, ValueError, TypeError):
            return [-1, 0]  # of a run that no tracker was told of, or of an older version
