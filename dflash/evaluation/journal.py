"""Finished results on disk while an evaluation runs, so that an interruption loses only the prompt under way.

JSONL: a first line with the settings and the number of prompts, then one line per result, each on disk when written.
"""

import json
import os
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from dflash.files import naming


def partial_of(out: Path) -> Path:
    """Where an evaluation that will be written to `out` keeps what it has finished."""
    return out.with_name(out.name + ".partial.jsonl")


def progress_of(out: Path) -> tuple[int, int] | None:
    """(finished prompts, prompts in all) of an evaluation under way; None when none is, or nothing is known yet."""
    try:
        lines = partial_of(out).read_bytes().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith(b"\n")]
        total = [record["prompts"] for record in records if "prompts" in record][-1]
        done = {(record["row"]["set"], record["row"]["id"]) for record in records if "row" in record}
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None
    return len(done), total


class Journal:
    """The results of one evaluation by key; opening it reads what an earlier start with the same settings left."""

    def __init__(self, path: Path, settings: dict[str, Any], prompts: int) -> None:
        """Open or begin a journal of so many prompts.

        Raises:
            UserError: the file belongs to an evaluation with other settings, or cannot be written.
        """
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))  # as they read back: tuples are lists
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")
        except OSError as error:
            raise UserError(f"{path} could not be written: {error.strerror}.") from error
        try:
            self._resume(settings, prompts)
        except BaseException:
            self._file.close()
            raise

    def get(self, key: str) -> dict[str, Any] | None:
        return self._rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keep a result; it is on disk when this returns."""
        self._rows[key] = row
        self._write({"key": key, "row": row})

    def close(self) -> None:
        self._file.close()

    def _resume(self, settings: dict[str, Any], prompts: int) -> None:
        records = self._complete_records()
        if not records:
            self._write({"settings": settings, "prompts": prompts})
            return
        found = records[0].get("settings")
        if found != settings:
            changed = sorted(k for k in settings if not found or found.get(k) != settings[k])
            raise UserError(
                f"{self.path} holds results of an unfinished evaluation with other settings "
                f"({', '.join(changed) or 'more of them'}): finish that one, choose another output, or delete the file."
            )
        self._rows = {record["key"]: record["row"] for record in records if "row" in record}
        self._write({"prompts": prompts})  # there may be more of them now

    def _complete_records(self) -> list[dict[str, Any]]:
        """All whole lines; a last line that an interruption tore is cut off."""
        self._file.seek(0)
        lines = self._file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            self._file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path} is damaged: delete it to evaluate afresh.") from error

    def _write(self, record: dict[str, Any]) -> None:
        with naming(self.path):
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
