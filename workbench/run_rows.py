"""The table of runs: what the run folders say, joined with what is known of the jobs that run them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dflash.errors import UserError
from workbench.job import Job
from workbench.jobs import Jobs
from workbench.run_notes import Notes, read_notes
from workbench.run_reader import RunsRoot, check_name
from workbench.run_summary import RunSummary
from workbench.train_jobs import TRAIN


@dataclass(frozen=True)
class RunRow:
    """A run with its job (None for one that was started in a terminal) and its notes."""

    summary: RunSummary
    job: Job | None
    notes: Notes
    has_checkpoint: bool = False
    others_run: bool = False  # so that it would be slower now than later

    @property
    def can_stop(self) -> bool:
        return self.job is not None and self.job.state == "running" and not self.job.stopping

    @property
    def can_abort(self) -> bool:
        return self.job is not None and self.job.state == "queued"

    @property
    def can_resume(self) -> bool:
        ended_early = self.summary.state in ("stopped", "failed", "lost")
        return ended_early and self.has_checkpoint and not (self.job and self.job.active)

    @property
    def can_queue(self) -> bool:
        """To be resumed when no other job runs."""
        return self.can_resume and self.others_run


def rows(root: RunsRoot, jobs: Jobs) -> list[RunRow]:
    """Queued runs in the order of their turn, then all others, the newest first."""
    everyone = jobs.list()
    known = {job.name: job for job in everyone if job.kind == TRAIN}
    folders = {summary.name: summary for summary in root.summaries()}
    waiting = [job for name, job in known.items() if name not in folders and job.state != "done"]
    coming = [joined(RunSummary(job.name, "starting", started=job.created), job) for job in waiting]
    there = [joined(summary, known.get(name)) for name, summary in folders.items()]
    everything = [*(row for row in coming + there if row.state == "queued")]
    everything += sorted(
        (row for row in coming + there if row.state != "queued"), key=lambda row: row.started or 0.0, reverse=True
    )
    return [_row(root.root / row.name, row, known.get(row.name), everyone) for row in everything]


def row(root: RunsRoot, jobs: Jobs, name: str) -> RunRow:
    """One run.

    Raises:
        UserError: there is neither a run nor a job of that name.
    """
    check_name(name)
    found = jobs.find(name)
    job = found if found is not None and found.kind == TRAIN else None
    try:
        summary = root.summary(name)
    except UserError:
        if job is None:
            raise
        summary = RunSummary(name, "starting", started=job.created)
    return _row(root.root / name, joined(summary, job), job, jobs.list())


def _row(path: Path, summary: RunSummary, job: Job | None, everyone: Sequence[Job]) -> RunRow:
    has_checkpoint = any((path / "checkpoints").glob("step_*"))
    return RunRow(summary, job, read_notes(path), has_checkpoint, any(one.state == "running" for one in everyone))


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

