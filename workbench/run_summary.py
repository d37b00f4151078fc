"""One row of the table of runs: what `status.json`, the last metric lines and the config say of a run."""

import json
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from workbench.metric_lines import Cursor, Record, is_number, newest, read_on

HEARTBEAT_BOUND = 45.0  # seconds; the trainer writes one every 8
State = Literal["queued", "starting", "running", "stopped", "finished", "failed", "lost"]
KINDS = ("train", "validation", "decode")
_ENDED = ("stopped", "finished", "failed")
_SPEED_RECORDS = 20  # over which the time left is estimated


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run without reading all of it. Everything numeric is None where nothing was recorded yet."""

    name: str
    state: State
    message: str = ""  # why it is in that state, as a sentence; empty where there is nothing to add
    problem: str = ""  # what in its folder could not be read, as sentences
    started: float | None = None  # epoch seconds
    heartbeat: float | None = None  # epoch seconds
    step: int | None = None
    max_steps: int | None = None
    eta_seconds: float | None = None  # of training alone: validation and decoding come on top
    loss: float | None = None  # of the last recorded training step
    validation_loss: float | None = None
    tau_estimate: float | None = None  # on held-out rows where there are some, else of training
    decoded_tau: float | None = None
    tokens_per_second: float | None = None

    @property
    def progress(self) -> float | None:
        """Share of the steps that are done, from 0 to 1."""
        return None if self.step is None or not self.max_steps else min(1.0, self.step / self.max_steps)

    @property
    def is_over(self) -> bool:
        return self.state in (*_ENDED, "lost")


@dataclass
class LatestRecords:
    """The newest record of each kind of one run, kept up to date without reading a line twice."""

    by_kind: dict[str, Record] = field(default_factory=dict)
    seconds_per_step: deque = field(default_factory=lambda: deque(maxlen=_SPEED_RECORDS))
    cursor: Cursor | None = None

    def update(self, path: Path) -> None:
        """
        Raises:
            OSError: the file cannot be read. A run whose metrics are gone has none.
        """
        try:
            self._read(path)
        except FileNotFoundError:
            self._forget()
            self.cursor = None

    def _read(self, path: Path) -> None:
        if self.cursor is None:
            found, self.cursor = newest(path, {"train": _SPEED_RECORDS, "validation": 1, "decode": 1})
            self._take(record for records in found.values() for record in records)
            return
        records, cursor = read_on(path, self.cursor)
        if cursor.restarts != self.cursor.restarts:
            self._forget()
        self.cursor = cursor
        self._take(records)

    def _forget(self) -> None:
        self.by_kind.clear()
        self.seconds_per_step.clear()

    def _take(self, records) -> None:
        for record in records:
            if record.get("kind") not in KINDS or (record.get("kind") == "train" and "loss" not in record):
                continue  # a skipped step says nothing of how well the run does
            self.by_kind[record["kind"]] = record
            if _number(record, "tokens") and _number(record, "tokens_per_s"):
                self.seconds_per_step.append(record["tokens"] / record["tokens_per_s"])

    @property
    def typical_seconds_per_step(self) -> float | None:
        return statistics.median(self.seconds_per_step) if self.seconds_per_step else None


def summarise(path: Path, latest: LatestRecords, now: float | None = None) -> RunSummary:
    """Read a run's small files. Never raises for what is in them: what cannot be read becomes `problem`."""
    now = time.time() if now is None else now
    problems: list[str] = []
    status = _read_status(path / "status.json", problems)
    config = _read_config(path / "config.yaml", problems)
    try:
        latest.update(path / "metrics.jsonl")
    except OSError as error:
        problems.append(f"metrics.jsonl could not be read ({error.strerror}).")
    if latest.cursor and latest.cursor.unreadable:
        problems.append(unreadable_in_words(latest.cursor.unreadable))
    train, validation, decode = (latest.by_kind.get(kind, {}) for kind in KINDS)
    state, message = state_of(status, now)
    step = _first_number(status.get("step"), train.get("step"), validation.get("step"))
    max_steps = _first_number(status.get("max_steps"), (config.get("run") or {}).get("max_steps"))
    if max_steps is None and state == "finished":
        max_steps = step
    each = latest.typical_seconds_per_step
    left = each * max(0, max_steps - step) if state == "running" and None not in (each, max_steps, step) else None
    return RunSummary(
        name=path.name,
        state=state,
        message=message,
        problem=" ".join(problems),
        started=started_at(path),
        heartbeat=_number(status, "heartbeat"),
        step=None if step is None else int(step),
        max_steps=None if max_steps is None else int(max_steps),
        eta_seconds=left,
        loss=_number(train, "loss"),
        validation_loss=_number(validation, "loss"),
        tau_estimate=_first_number(validation.get("tau_estimate"), train.get("tau_estimate")),
        decoded_tau=_number(decode, "decoded_tau"),
        tokens_per_second=_number(train, "tokens_per_s"),
    )


def state_of(status: dict[str, Any], now: float) -> tuple[str, str]:
    """State and reason. A run that calls itself running is believed only while its heart beats or its process lives."""
    state = status.get("state")
    if state == "failed":
        return "failed", str(status.get("reason") or "It ended with an error: its log says which.")
    if state in _ENDED:
        return state, ""
    if state != "running":
        return "lost", "Its status says nothing: the process ended before it could, or the file was damaged."
    heartbeat = _number(status, "heartbeat") or 0.0
    silent = now - heartbeat
    if silent > HEARTBEAT_BOUND:
        if not _lives(status.get("pid"), heartbeat):
            return "lost", f"Nothing was heard of it for {duration(silent)} and its process is gone: resume it."
        return "running", f"Its process is there, but nothing was heard of it for {duration(silent)}."
    return ("running", "") if is_number(status.get("step")) else ("starting", "It loads target, data and draft.")


def unreadable_in_words(lines: int) -> str:
    """For lines of metrics.jsonl that are no records."""
    if lines == 1:
        return "One line of metrics.jsonl could not be read and is left out."
    return f"{lines:,} lines of metrics.jsonl could not be read and are left out."


def duration(seconds: float) -> str:
    """ "4 s", "12 min", "3 h 20 min", "2 d 4 h": as exact as one needs to plan with."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def _read_status(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(status, dict):
            return status
        problems.append("status.json holds no record.")
    except FileNotFoundError:
        problems.append("It has no status.json.")
    except (OSError, ValueError, RecursionError):
        problems.append("status.json could not be read.")
    return {}


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_settings(path)
    except (OSError, ValueError) as error:
        problems.append(f"config.yaml could not be read ({_first_line(error)}).")
        return {}


def read_settings(path: Path) -> dict[str, Any]:
    """The tree of settings in a run's config, not validated: it may come from another version.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no YAML, or holds no settings.
    """
    try:
        # The C loader and a memory, since fifty configs are read for one page every two seconds.
        tree = _parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"no YAML in line {mark.line + 1}" if mark else "no YAML") from error
    if not isinstance(tree, dict):
        raise ValueError("no settings in it")
    return tree


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _first_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def started_at(path: Path) -> float | None:
    """As environment.json says, which is written once, when a run is created; of an older run, its file's time."""
    try:
        about = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        about = None  # that it is damaged hides nothing else of the run
    if isinstance(about, dict) and is_number(about.get("started")):
        return about["started"]
    for name in ("environment.json", "config.yaml", "status.json"):
        try:
            return (path / name).stat().st_mtime
        except OSError:
            continue
    return None


def _lives(pid: Any, heartbeat: float) -> bool:
    """Whether the process that beat last is there; one that began later only has its number."""
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    try:
        process = psutil.Process(pid)
        return process.create_time() <= heartbeat + 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OverflowError):
        return False


def _number(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    return value if is_number(value) else None


def _first_number(*values: Any) -> float | None:
    return next((value for value in values if is_number(value)), None)
