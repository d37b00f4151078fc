"""The table of runs: what the run folders say, joined with what is known of the jobs that run them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dflash.errors import UserError
from workbench.job import Job
from workbench.jobs import Jobs
from workbench.run_notes import Notes, read_notes
from workbench.run_reader import RunsRoot
from workbench.run_summary import RunSummary

KIND = "train"


@dataclass(frozen=True)
class RunRow:
    """A run with its job (None for one that was started in a terminal) and its notes."""

    summary: RunSummary
    job: Job | None
    notes: Notes

    @property
    def can_stop(self) -> bool:
        return self.job is not None and self.job.state == "running" and not self.job.stopping

    @property
    def can_abort(self) -> bool:
        return self.job is not None and self.job.state == "queued"

    @property
    def can_resume(self) -> bool:
        return self.summary.state in ("stopped", "failed", "lost") and not (self.job and self.job.active)


def rows(root: RunsRoot, jobs: Jobs) -> list[RunRow]:
    """Queued runs in the order of their turn, then all others, the newest first."""
    known = {job.name: job for job in jobs.list() if job.kind == KIND}
    folders = {summary.name: summary for summary in root.summaries()}
    waiting = [job for name, job in known.items() if name not in folders and job.state != "done"]
    coming = [joined(RunSummary(job.name, "starting", started=job.created), job) for job in waiting]
    there = [joined(summary, known.get(name)) for name, summary in folders.items()]
    everything = [*(row for row in coming + there if row.state == "queued")]
    everything += sorted(
        (row for row in coming + there if row.state != "queued"), key=lambda row: row.started or 0.0, reverse=True
    )
    return [RunRow(row, known.get(row.name), read_notes(root.root / row.name)) for row in everything]


def row(root: RunsRoot, jobs: Jobs, name: str) -> RunRow:
    """One run.

    Raises:
        UserError: there is neither a run nor a job of that name.
    """
    found = jobs.find(name)
    job = found if found is not None and found.kind == KIND else None
    try:
        summary = root.summary(name)
    except UserError:
        if job is None:
            raise
        summary = RunSummary(name, "starting", started=job.created)
    return RunRow(joined(summary, job), job, read_notes(root.root / name))


def joined(summary: RunSummary, job: Job | None) -> RunSummary:
    """What the job adds: it knows of runs that did not get as far as writing a status, and why a process is gone."""
    if job is None:
        return summary
    if job.state == "queued":
        return replace(summary, state="queued", message="It waits for its turn.", problem="")
    if job.state == "running":
        if job.stopping:
            return replace(summary, message="It was asked to stop: it saves a checkpoint first.")
        if summary.is_over or summary.step is None:
            return replace(summary, state="starting", message="It loads target, data and draft.", problem="")
        return summary
    if job.state == "done":
        return summary
    cause = job.likely_cause or summary.message
    if summary.state in ("running", "starting", "lost"):  # it ended without saying so in its folder
        return replace(summary, state=job.state, message=cause, eta_seconds=None)
    return replace(summary, message=cause) if summary.state == job.state else summary


def stop(root: RunsRoot, jobs: Jobs, name: str) -> None:
    """Ask a run to save a checkpoint and exit.

    Raises:
        UserError: there is no such run, it does not run, or it was not started from here.
    """
    found = row(root, jobs, name)
    if found.job is None and not found.summary.is_over:
        raise UserError(f"Run {name!r} was not started from this workbench: stop it with Ctrl-C where it was started.")
    jobs.stop(name)


def abort(jobs: Jobs, name: str) -> None:
    """Take a run out of the queue.

    Raises:
        UserError: there is no such job, or it has started.
    """
    jobs.abort(name)


def resume(root: RunsRoot, jobs: Jobs, name: str) -> None:
    """Go on with a run from its newest checkpoint, also with one that was started in a terminal.

    Raises:
        UserError: there is no such run, or it still runs or is finished.
    """
    found = row(root, jobs, name)
    if not found.can_resume:
        raise UserError(f"Run {name!r} is {found.summary.state}: only a stopped, failed or lost one can be resumed.")
    if found.job is not None and found.job.resume_command is not None:
        jobs.resume(name)
        return
    command = resume_command(root, name)
    jobs.start(command, kind=KIND, name=name, resume_command=command)


def resume_command(root: RunsRoot, name: str) -> Sequence[str]:
    """Of a run that this workbench did not start: on one process."""
    return [sys.executable, "-m", "dflash", "train", "--resume", str(root.path(name))]
