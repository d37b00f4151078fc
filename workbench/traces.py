"""Races that were kept: saved by their record, opened by link."""

import json
from datetime import date
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from workbench.link_store import LinkStore
from workbench.machine import in_words
from workbench.race import new_id
from workbench.race_record import RaceRecord, parse_record, picture_of


def trace_store(runs: Path) -> LinkStore:
    """Where a workbench keeps its traces."""
    return LinkStore(runs / ".traces", "trace")


def save_trace(runs: Path, record: RaceRecord) -> str:
    """Keep a race; returns the id that its link ends with.

    Raises:
        UserError: it is too large, or there is no room for it.
    """
    kept = record.model_copy(update={"saved": record.saved or date.today().isoformat()})
    return trace_store(runs).save(json.dumps(kept.model_dump(), ensure_ascii=False, separators=(",", ":")))


def open_trace(runs: Path, name: str) -> RaceRecord:
    """The race behind an id.

    Raises:
        UserError: there is none, or what is there is no race.
    """
    text = trace_store(runs).open(name)
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"The saved trace {name} is no JSON any more: it is damaged.") from error
    return parse_record(record)


def saved_picture(record: RaceRecord) -> dict[str, Any]:
    """What the page draws for a race that was opened by link."""
    words = f"{record.target_name} · {machine_words(record)}"
    return picture_of(record, new_id()) | {
        "recorded": {"kind": "Saved", "machine": words, "date": record.saved or "", "command": "opened by link"}
    }


def machine_words(record: RaceRecord) -> str:
    """What the race was run on; a record from elsewhere may not say."""
    try:
        return in_words(record.machine)
    except (KeyError, AttributeError):
        return "a machine that the trace does not describe"
