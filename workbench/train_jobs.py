"""Trainings as jobs: start one from a prepared request, queue it, stop it, go on with it, tell how all of them do."""

import hashlib
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from dflash.data.sources import is_jsonl
from dflash.errors import UserError
from workbench.job import Job, read_json
from workbench.jobs import GRACE, Jobs
from workbench.run_reader import RunsRoot
from workbench.run_request import Prepared, program, ranks_of_run
from workbench.run_summary import HEARTBEAT_BOUND, RunSummary

TRAIN, DATA = "train", "data"
_SAMPLE_CONVERSATIONS = 128
_SAMPLE_TOKENS = 96  # of an answer
_SHOWN = 6  # jobs that are over
_FAILED = ("failed", "stopped", "lost")


class TrainJobs:
    """The jobs of one runs folder together with the runs they make."""

    def __init__(self, root: Path) -> None:
        self.runs = RunsRoot(root)
        self.jobs = Jobs(self.runs.root)

    def begin(self, prepared: Prepared, *, queued: bool, data_follows: bool = False) -> Job:
        """Start or queue exactly what was previewed.

        `data_follows`: the missing data is being made by jobs before it; see the method of that name.

        Raises:
            UserError: its config or this machine does not allow it, or its name is taken.
        """
        prepared.plan.refuse(also_lacking=not (data_follows or (queued and self.data_follows(prepared))))
        if not queued:
            for file, job in self._in_the_making(prepared).items():
                raise UserError(f"{file!r} is still being written by job {job.name!r}: queue the run behind it.")
        begin = self.jobs.enqueue if queued else self.jobs.start
        return begin(
            prepared.command,
            kind=TRAIN,
            name=prepared.name,
            config=prepared.frozen,
            resume_command=prepared.resume_command,
        )

    def begin_with_data(self, prepared: Prepared) -> list[Job]:
        """Queue the making of every data file that is missing, and the run behind it.

        Raises:
            UserError: something else is wrong with the run, or one of the names is taken; nothing is queued then.
        """
        files = missing_files(prepared)
        if not files:
            raise UserError(f"No data is missing for {prepared.name!r}: start it.")
        prepared.plan.refuse(also_lacking=False)
        if others := [c.sentence for c in prepared.plan.lacking if c.fields[0] != "data.train"]:
            raise UserError(" ".join(others))
        begun: list[Job] = []
        try:
            for file in files:
                command = synthesis(prepared, file, sys.executable)
                begun.append(self.jobs.enqueue(command, kind=DATA, name=data_job_name(file)))
            return [*begun, self.begin(prepared, queued=True, data_follows=True)]
        except UserError:
            for job in reversed(begun):  # the last one first: the end of a running one starts the next
                self._take_back(job.name)
            raise

    def _take_back(self, name: str) -> None:
        """Make as if a job had not been asked for; one that has just begun has written nothing yet."""
        state = self.jobs.get(name).state
        if state == "queued":
            self.jobs.abort(name)
        elif state == "running":
            self.jobs.stop(name, grace=0)

    def data_follows(self, prepared: Prepared) -> bool:
        """Whether jobs that run or wait make its data, and it lacks nothing else: it can be queued behind them."""
        config, lacking = prepared.plan.config, prepared.plan.lacking
        made = self._in_the_making(prepared)
        missing = {source for source in config.data.train if not Path(source).exists()}
        return bool(made) and missing <= made.keys() and all(c.fields[0] == "data.train" for c in lacking)

    def _in_the_making(self, prepared: Prepared) -> dict[str, Job]:
        """Files of data.train that a job is writing, or will."""
        found = {}
        for source in filter(is_jsonl, prepared.plan.config.data.train):
            job = self.jobs.find(data_job_name(source))
            if job is not None and job.active and source in job.command:
                found[source] = job
        return found

    def stop(self, name: str, grace: float = GRACE) -> Job:
        """Save a checkpoint and exit; killed after `grace` seconds.

        Raises:
            UserError: there is no such job, or it does not run.
        """
        return self.jobs.stop(name, grace)

    def resume(self, name: str, *, queued: bool = False) -> Job:
        """Go on from the newest checkpoint of a run, whoever started it; `queued`: when no other job runs.

        Raises:
            UserError: there is no such run, it still runs, or it has no checkpoint.
        """
        job = self.jobs.find(name)
        if job is not None and job.resume_command is not None:
            if not job.active:
                self._check_resumable(name)
            return self.jobs.resume(name, queued=queued)
        self._check_resumable(name)
        path = self.runs.path(name)
        command = [*program(ranks_of_run(name, self.runs)), "train", "--resume", str(path)]
        begin = self.jobs.enqueue if queued else self.jobs.start
        return begin(command, kind=TRAIN, name=name, resume_command=command)

    def rows(self) -> list[dict[str, Any]]:
        """What page and API show: running, queued, then the latest that are over. Starts a queue that stands still."""
        jobs = self.jobs.list()
        states = {job.state for job in jobs}
        if "queued" in states and "running" not in states:  # the keeper that should have gone on was killed
            self.jobs.advance()
            jobs = self.jobs.list()
        running = [job for job in jobs if job.state == "running"]
        queued = [job for job in jobs if job.state == "queued"]
        over = [job for job in jobs if not job.active][:_SHOWN]
        turns = [job.name for job in queued]
        rows = [self._row(job, turns, busy=bool(running)) for job in (*running, *queued, *over)]
        known = {job.name for job in jobs if job.active}
        return [self._foreign_row(name) for name in self._running_elsewhere(known)] + rows

    def _check_resumable(self, name: str) -> None:
        path = self.runs.path(name)
        if self.runs.summary(name).state in ("running", "starting"):
            raise UserError(f"Run {name!r} is being trained: stop it first.")
        if not any((path / "checkpoints").glob("step_*")):
            raise UserError(f"Run {name!r} has no checkpoint to go on from: start it again.")

    def _row(self, job: Job, queued: list[str], *, busy: bool) -> dict[str, Any]:
        summary = self._summary(job.name) if job.kind == TRAIN and job.state != "queued" else None
        state = _state(job, summary)
        actions = []
        if state == "queued":
            actions = ["abort"]
        elif state in ("starting", "running", "stopping"):
            actions = ["kill" if job.stopping else "stop"]
        elif state in _FAILED and self._can_resume(job):
            actions = ["queue", "resume"] if busy else ["resume"]
        told = job.likely_cause if state in (*_FAILED, job.state) else None  # else the run says that it ended well
        problem = told or (summary.message if summary and state in _FAILED else "")
        return {
            "name": job.name,
            "kind": job.kind,
            "state": state,
            "place": queued.index(job.name) + 1 if job.name in queued else None,
            "created": job.created,
            "started": job.started,
            "ended": job.ended,
            "exit_code": job.exit_code,
            "problem": problem,
            "tail": job.log_tail(14) if state in ("failed", "lost") or job.active else "",
            "command": shlex.join(job.command),
            "actions": actions,
            "has_run": summary is not None,
            **_progress(summary),
        }

    def _foreign_row(self, name: str) -> dict[str, Any]:
        """A run that was started in a terminal: shown, and left to whoever started it."""
        summary = self.runs.summary(name)
        return {
            "name": name,
            "kind": TRAIN,
            "state": summary.state,
            "place": None,
            "created": summary.started,
            "started": summary.started,
            "ended": None,
            "exit_code": None,
            "problem": "It was started in a terminal: stop it there with Ctrl-C.",
            "tail": "",
            "command": "",
            "actions": [],
            "has_run": True,
            **_progress(summary),
        }

    def _running_elsewhere(self, known: set[str]) -> list[str]:
        """Runs whose heart beats without a job of ours. Only the small status files are read, the page asks often."""
        now, found = time.time(), []
        for status in self.runs.root.glob("*/status.json"):
            name = status.parent.name
            if name in known:
                continue
            record = read_json(status)
            beat = record.get("heartbeat")
            if record.get("state") == "running" and isinstance(beat, (int, float)) and now - beat < HEARTBEAT_BOUND:
                job = self.jobs.find(name)
                # A job that has just ended badly leaves a fresh heartbeat behind.
                if job is None or (job.ended or 0.0) < beat - 1 and job.state != "lost":
                    found.append(name)
        return sorted(found)

    def _summary(self, name: str) -> RunSummary | None:
        try:
            return self.runs.summary(name)
        except UserError:
            return None  # not begun yet, or deleted

    def _can_resume(self, job: Job) -> bool:
        if job.kind != TRAIN or job.resume_command is None:
            return False
        return any((self.runs.root / job.name / "checkpoints").glob("step_*"))


def missing_files(prepared: Prepared) -> list[str]:
    """JSONL files of data.train that do not exist and that the target could write."""
    if not any(complaint.fields[0] == "data.train" for complaint in prepared.plan.lacking):
        return []
    missing = [source for source in prepared.plan.config.data.train if not Path(source).exists()]
    return [source for source in missing if is_jsonl(source)]


def data_job_name(file: str) -> str:
    """Of the job that makes this file: one file has one maker at a time, and files of one name in two folders two."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(file).stem)
    return f"data-{stem[:80]}-{hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:6]}"


def synthesis_in_words(prepared: Prepared, file: str) -> str:
    """The same command for a terminal."""
    return shlex.join(synthesis(prepared, file))


def synthesis(prepared: Prepared, file: str, program: str = "") -> list[str]:
    """The command that has the target write a small file of conversations; `program`: the Python that runs it."""
    config = prepared.plan.config
    count = max(_SAMPLE_CONVERSATIONS, 2 * config.data.validation_size)
    name, dtype, device = config.target.name, config.target.dtype, config.run.device
    return [
        *([program, "-m", "dflash"] if program else ["dflash"]),
        "synthesize",
        *("--out", file),
        *("--self-instruct", str(count)),
        *("--max-new-tokens", str(_SAMPLE_TOKENS)),
        *("--target", name),
        *("--device", device),
        *(("--dtype", dtype) if dtype in ("bfloat16", "float32") else ()),
    ]


def _state(job: Job, summary: RunSummary | None) -> str:
    """The job's state, finer where the run's own status tells more."""
    if job.state == "running":
        if job.stopping:
            return "stopping"
        return "starting" if job.kind == TRAIN and (summary is None or summary.state != "running") else "running"
    if job.state == "lost" and summary is not None and summary.state in ("finished", "stopped"):
        return {"finished": "done"}.get(summary.state, summary.state)  # its keeper alone was killed
    return job.state


def _progress(summary: RunSummary | None) -> dict[str, Any]:
    if summary is None:
        return {"step": None, "max_steps": None, "progress": None, "eta_seconds": None, "loss": None, "tau": None}
    return {
        "step": summary.step,
        "max_steps": summary.max_steps,
        "progress": summary.progress,
        "eta_seconds": summary.eta_seconds,
        "loss": summary.loss,
        "tau": summary.tau_estimate,
    }
