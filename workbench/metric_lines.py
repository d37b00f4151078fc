"""Reading `metrics.jsonl` while a trainer writes it: from a cursor, never twice, whatever happens to the file.

The trainer appends lines; a resumed run first cuts the file back and then goes on (RunFolder.cut_metrics), so that a
reader may stand beyond its end, or at a place where other bytes are now.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

_CHUNK = 4 * 2**20  # bytes read at once
_FINGERPRINT = 256  # bytes before the cursor that tell whether the file is still the one that was read

Record = dict[str, Any]


@dataclass(frozen=True)
class Cursor:
    """Where a reader stands: everything before `offset` was read."""

    offset: int = 0
    before: bytes = b""  # the last bytes before `offset`
    restarts: int = 0  # how often the file was not the one read before, and was begun anew
    unreadable: int = 0  # lines since the last restart that were no records


def read_on(path: Path, cursor: Cursor | None = None) -> tuple[list[Record], Cursor]:
    """The records behind the cursor and the cursor behind them.

    A last line without its end is left for the next call: the trainer is writing it. Lines that are no records (torn
    by a crash, say) are passed over and counted. Where `restarts` differs from the old cursor's, the file was cut or
    replaced and the records begin at its start: what was read before no longer counts.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    cursor = cursor or Cursor()
    with open(path, "rb") as file:
        if not _is_where_we_were(file, cursor):
            cursor = Cursor(restarts=cursor.restarts + 1)
        file.seek(cursor.offset)
        records: list[Record] = []
        unreadable, offset = cursor.unreadable, cursor.offset
        for line in _whole_lines(file):
            offset += len(line)
            record = parse_line(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                unreadable += 1
        return records, _at(file, offset, cursor.restarts, unreadable)


def newest(path: Path, counts: Mapping[str, int]) -> tuple[dict[str, list[Record]], Cursor]:
    """The newest records of some kinds, oldest first, so many of each, searched from the end; and a cursor at the end.

    A row of a table needs no more, and a long file is not parsed for it.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    marks = {kind: b'"kind": ' + json.dumps(kind).encode() for kind in counts}  # as json.dumps spaces it
    found: dict[str, list[Record]] = {kind: [] for kind in counts}
    with open(path, "rb") as file:
        end = 0
        for line, behind in _lines_from_the_end(file):
            end = end or behind
            wanting = [kind for kind in counts if len(found[kind]) < counts[kind]]
            if not wanting:
                break
            kind = next((kind for kind in wanting if marks[kind] in line), None)
            if kind and (record := parse_line(line)) and record.get("kind") == kind:
                found[kind].insert(0, record)
        return found, _at(file, end)


def parse_line(line: bytes) -> Record | None:
    """A record, or None for anything else."""
    try:
        record = orjson.loads(line)
    except ValueError:
        try:
            record = json.loads(line)  # slower, but it takes the NaN that json.dumps writes
        except (ValueError, RecursionError):
            return None
    return record if isinstance(record, dict) and is_number(record.get("step")) else None


def is_number(value: Any) -> bool:
    """Finite: what a chart can show. Booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _at(file: BinaryIO, offset: int, restarts: int = 0, unreadable: int = 0) -> Cursor:
    file.seek(max(0, offset - _FINGERPRINT))
    return Cursor(offset, file.read(min(offset, _FINGERPRINT)), restarts, unreadable)


def _is_where_we_were(file: BinaryIO, cursor: Cursor) -> bool:
    file.seek(cursor.offset - len(cursor.before))
    return file.read(len(cursor.before)) == cursor.before


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends, from where the file stands; a last one without an end is not among them."""
    rest: list[bytes] = []
    while chunk := file.read(_CHUNK):
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*rest, line, b"\n"])
            rest = []
        rest.append(tail)


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Whole lines, the last one first, each with the offset behind it."""
    start = file.seek(0, 2)
    rest = b""  # of the line that the previous chunk began in
    is_torn = True  # what stands behind the last line end is still being written
    while start > 0:
        size = min(_CHUNK, start)
        start -= size
        file.seek(start)
        first, *lines = (file.read(size) + rest).split(b"\n")
        behind = start + size + len(rest)
        for line in reversed(lines):
            if not is_torn:
                yield line, behind + 1
            behind -= len(line) + 1
            is_torn = False
        rest = first
    if not is_torn:
        yield rest, len(rest) + 1
