"""The file of regenerated conversations: a journal while it grows, the file itself once it is complete.

    OUT.journal          a line with the settings, then one line per outcome, in the order in which they came
    OUT                  the conversations in the order of the data, written at the end, in one step
    OUT.provenance.json  model, settings, counts, what was left out and why

A kill at any moment leaves whole lines and at most one torn last one, which the next start cuts off. So the next start
goes on where the last one ended, and what OUT holds does not depend on how often that happened.
"""

import fcntl
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from dflash.data.conversations import Conversation
from dflash.errors import UserError
from dflash.files import naming, write_atomically
from dflash.online.answering import Answered

REGENERATED = "regenerated.jsonl"  # in the folder of a run that had its answers regenerated


def provenance_path(out: Path) -> Path:
    """Where it is told how `out` came about."""
    return out.with_name(f"{out.name}.provenance.json")


def read_provenance(out: Path, settings: dict[str, Any], *, whichever_model: bool = False) -> dict[str, Any]:
    """How `out`, which is there and so complete, came about; with `whichever_model` that may be any model.

    Raises:
        UserError: it was made otherwise, or not by this command.
    """
    try:
        provenance = json.loads(provenance_path(out).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out} exists already, and not from this command: choose another file.") from error
    if whichever_model:
        settings = settings | {name: provenance["settings"].get(name) for name in ("model", "revision")}
    _require_same(provenance["settings"], settings, f"{out} is complete already, but was made")
    return provenance


class AnswerJournal:
    """The growing part. Use it as a context manager; one process at a time."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """Begin, or go on. `settings` (JSON-safe) are what the answers depend on.

        Raises:
            UserError: another process is at it, the journal was begun with other settings, or it cannot be written.
        """
        self._out, self._settings = out, settings
        self.path = out.with_name(f"{out.name}.journal")
        self.rejects: dict[str, str] = {}  # reason by id
        self.tokens = 0  # generated, in all sittings
        self._places: dict[str, int] = {}  # where the line of an id begins
        with naming(self.path):
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self.path, "a+b")
        try:
            self._lock()
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "AnswerJournal":
        return self

    def __exit__(self, *_exception) -> None:
        self.sync()
        if not self._places:  # nothing that took time: it must not be in the way of other data or settings
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __len__(self) -> int:
        """Outcomes, those that were left out included."""
        return len(self._places) + len(self.rejects)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._places or id_ in self.rejects

    def add(self, outcome: Answered) -> None:
        """Note an outcome; it survives this process."""
        id_ = outcome.conversation.id
        if outcome.reason is not None:
            self._write({"id": id_, "reject": outcome.reason})
            self.rejects[id_] = outcome.reason
        else:
            record = _record(outcome.conversation, self._settings)
            self._places[id_] = self._write({"id": id_, "tokens": outcome.tokens, "record": record})
            self.tokens += outcome.tokens

    def sync(self) -> None:
        """What was noted survives this machine's end, too."""
        os.fsync(self._file.fileno())

    def finish(self, ids: Iterable[str], provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the file, its conversations in the order of `ids`, and drop the journal; returns the provenance."""
        staging = self._out.with_name(f".{self._out.name}.{os.getpid()}.tmp")
        order, written = array("q"), 0
        for id_ in ids:
            if (place := self._places.get(id_)) is not None:
                order.append(place)
        try:
            with naming(self._out), open(staging, "wb") as out:
                for place in order:
                    self._file.seek(place)
                    record = json.loads(self._file.readline())["record"]
                    out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                    written += 1
                out.flush()
                os.fsync(out.fileno())
            reasons = Counter(self.rejects.values()).most_common()
            provenance = {
                "settings": self._settings, "conversations": written, "tokens": self.tokens,
                "rejected": len(self.rejects), "reasons": reasons, **provenance,
            }  # fmt: skip
            write_atomically(provenance_path(self._out), json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
            os.replace(staging, self._out)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
        self.path.unlink()
        return provenance

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self._out} is being made by another process: wait for it, or stop it first.") from error

    def _resume(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # torn; cut off below
            try:
                entry = json.loads(line)
                if end == 0:
                    begun = "was begun"
                    _require_same(entry["settings"], self._settings, f"{self.path}, the unfinished work on it, {begun}")
                elif "reject" in entry:
                    self.rejects[entry["id"]] = entry["reject"]
                else:
                    self._places[entry["id"]] = end
                    self.tokens += entry["tokens"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} is damaged at byte {end}: delete it to begin afresh.") from error
            end += len(line)
        self._file.truncate(end)
        if end == 0:
            self._write({"settings": self._settings})

    def _write(self, entry: dict[str, Any]) -> int:
        """Append a line; returns where it begins."""
        with naming(self.path):
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        return place


def _record(conversation: Conversation, settings: dict[str, Any]) -> dict[str, Any]:
    """A line of the file, in the form that `dflash.data` reads."""
    record = {
        "id": conversation.id,
        "category": conversation.category,
        "source": "regenerated",
        "target": settings["model"],
        "temperature": settings["temperature"],
        "finished": conversation.finished,
        "messages": conversation.messages,
    }
    return record | ({"tools": conversation.tools} if conversation.tools else {})


def _require_same(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    if found != wanted:
        differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        was = ", ".join(f"{name} = {found.get(name)!r}" for name in differing)
        raise UserError(f"{what} with other settings ({was}): use those again, or choose another output.")
