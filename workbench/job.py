"""One job as its folder tells it: files only, so that any process, now or after a restart, reads the same.

    .jobs/NAME/
      job.json      what it is: kind, command, folder to run in, when it was asked for
      config.yaml   settings frozen when it was asked for, where it has some
      output.log    everything it printed, standard output and errors together
      keeper.json   pid and start time of the process that watches it
      process.json  pid and start time of the job itself, when it started
      stop.json     somebody asked it to stop: when, how many seconds it has before it is killed, and, where its keeper
                    is gone, all its processes
      exit.json     exit code, and when
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dflash.files import write_atomically
from workbench.failure import likely_cause
from workbench.process import ProcessId

State = Literal["queued", "running", "done", "failed", "stopped", "lost"]
_TAIL_BYTES = 256 << 10
_LONGEST_LINE = 2_000  # characters shown of one line
# Exit codes of jobs that did their work all the same, by kind. Whatever else is not 0 is a failure.
_DONE_WITH = {("evaluate", 1): "Not every output was identical to plain decoding: see the log."}
_ASKED_TO_STOP = (130, 143, -2, -15)  # as `dflash` exits after SIGINT and SIGTERM, and as they end other programs


@dataclass(frozen=True)
class Job:
    """What was known of a job when its folder was read; read it again to know more."""

    folder: Path
    name: str
    kind: str
    command: tuple[str, ...]
    cwd: str
    created: float  # epoch seconds, as are all times here
    resume_command: tuple[str, ...] | None
    started: float | None
    ended: float | None
    exit_code: int | None  # negative: the signal that ended it
    stop_requested: float | None
    process: ProcessId | None
    keeper: ProcessId | None
    parts: tuple[ProcessId, ...]  # of a job that was asked to stop without its keeper
    state: State

    @classmethod
    def read(cls, folder: Path) -> "Job | None":
        """None where no job is recorded, or its record is damaged."""
        spec = read_json(folder / "job.json")
        try:
            waits = spec["state"] == "queued"  # then its other files tell of an earlier sitting
            begun, over, asked, watcher = (
                {} if waits else read_json(folder / name)
                for name in ("process.json", "exit.json", "stop.json", "keeper.json")
            )
            process = ProcessId(begun["pid"], begun["started"]) if begun else None
            keeper = ProcessId(watcher["pid"], watcher["started"]) if watcher else None
            parts = tuple(ProcessId(**part) for part in asked.get("parts", ()))
            resume = spec.get("resume_command")
            return cls(
                folder=folder,
                name=spec["name"],
                kind=spec["kind"],
                command=tuple(spec["command"]),
                cwd=spec["cwd"],
                created=spec["created"],
                resume_command=None if resume is None else tuple(resume),
                started=begun.get("time"),
                ended=over.get("time"),
                exit_code=over.get("code"),
                stop_requested=asked.get("time"),
                process=process,
                keeper=keeper,
                parts=parts,
                state="queued" if waits else _state(folder, spec, (process, keeper, *parts), over, bool(asked)),
            )
        except (KeyError, TypeError):
            return None

    @property
    def active(self) -> bool:
        """Waiting or running: its name is taken."""
        return self.state in ("queued", "running")

    @property
    def stopping(self) -> bool:
        """Asked to stop, and not gone yet."""
        return self.state == "running" and self.stop_requested is not None

    @property
    def log_file(self) -> Path:
        """Standard output and errors of every sitting."""
        return self.folder / "output.log"

    @property
    def config_file(self) -> Path | None:
        """The frozen settings, for jobs that have some."""
        path = self.folder / "config.yaml"
        return path if path.is_file() else None

    @property
    def result_file(self) -> Path | None:
        """What its command is told to write with --json."""
        return _result_file(self.cwd, self.command)

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the output; very long ones are cut. Empty where there is none."""
        return tail(self.log_file, lines)

    @cached_property
    def likely_cause(self) -> str | None:
        """Why it ended so, as a sentence; None while it waits or runs, and when there is nothing to say."""
        if self.state == "done":
            return _DONE_WITH.get((self.kind, self.exit_code))
        if self.state == "failed":
            return likely_cause(self.exit_code, self.log_tail())
        if self.state == "lost":
            return _why_lost(self.folder)
        if self.state == "stopped" and self.exit_code == -9:
            return "It did not stop in time and was killed: what it did since its last checkpoint is lost."
        if self.state == "stopped" and self.stop_requested is None:
            return "It was stopped from outside: somebody pressed Ctrl-C there, or the machine was shut down."
        return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where it is missing or damaged (a disk that filled up leaves such files)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by an object, in one step."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, of which only the last 256 KiB are read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    # A progress bar rewrites its line with carriage returns: only what it says last counts.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    shown = shown[:-1] if shown and not shown[-1] else shown
    return "\n".join(_shortened(line) for line in shown[-lines:])


def _shortened(line: str) -> str:
    hidden = len(line) - _LONGEST_LINE
    return line if hidden <= 0 else f"{line[:_LONGEST_LINE]} … ({hidden:,} more characters)"


def _state(folder: Path, spec: dict[str, Any], processes: tuple, over: dict[str, Any], stopping: bool) -> State:
    """Of a job that has been started."""
    code = over.get("code")
    if code is None:
        # Before the job has begun and between its end and the record of that, only its keeper is there.
        if any(process is not None and process.is_alive() for process in processes):
            return "running"
        code = read_json(folder / "exit.json").get("code")  # it may have been written meanwhile
    if code is None:
        return "lost"
    if code == 0 or ((spec["kind"], code) in _DONE_WITH and _has_result(spec)):
        return "done"
    return "stopped" if stopping or code in _ASKED_TO_STOP else "failed"


def _has_result(spec: dict[str, Any]) -> bool:
    """Python exits with 1 when it crashes as well, but then there is none."""
    out = _result_file(spec["cwd"], spec["command"])
    return out is not None and out.is_file()


def _result_file(cwd: str, command: Sequence[str]) -> Path | None:
    return Path(cwd, command[command.index("--json") + 1]) if "--json" in command[:-1] else None


def _why_lost(folder: Path) -> str:
    if shutil.disk_usage(folder).free < 1 << 20:
        return "It is gone without having said how it ended, and the disk is full: free some space, then resume."
    return (
        "It is gone without having said how it ended: the machine was restarted, or the process and its keeper were "
        "killed. Resume goes on from its last checkpoint."
    )
