"""The named endpoints of the Train page, for `gradio_client` and scripts."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from dflash.errors import UserError
from workbench.endpoints import register
from workbench.job import Job
from workbench.jobs import GRACE
from workbench.plan_view import summary
from workbench.run_request import Prepared, RunRequest, prepare
from workbench.train_jobs import TrainJobs


def add_endpoints(desk: TrainJobs) -> None:
    """Register train_preview, train_start, train_stop, train_resume, queue_add, queue_abort and jobs."""

    def prepared(origin: str, overrides: list[str], name: str, ranks: int) -> Prepared:
        return prepare(RunRequest.from_overrides(origin, overrides, name, ranks), desk.runs)

    def train_preview(origin: str, overrides: list[str] = [], name: str = "", ranks: int = 1) -> dict:  # noqa: B006
        """What a run would be: resolved config, faults, steps, memory, command. Nothing is started.

        `origin` is a recipe's name or "run:NAME"; `overrides` are texts of the form section.key=value.
        """
        return _said(lambda: summary(prepared(origin, overrides, name, ranks)))

    def train_start(origin: str, overrides: list[str] = [], name: str = "", ranks: int = 1) -> dict:  # noqa: B006
        """Start a training now, as a process of its own that outlives the workbench. See train_preview."""
        return _said(lambda: job_summary(desk.begin(prepared(origin, overrides, name, ranks), queued=False)))

    def queue_add(origin: str, overrides: list[str] = [], name: str = "", ranks: int = 1) -> dict:  # noqa: B006
        """Queue a training with its settings as they are now; it begins when no other job runs. See train_preview."""
        return _said(lambda: job_summary(desk.begin(prepared(origin, overrides, name, ranks), queued=True)))

    def train_stop(name: str, grace: float = GRACE) -> dict:
        """Ask a running job to save a checkpoint and exit; after `grace` seconds it is killed. Returns at once."""
        return _said(lambda: job_summary(desk.stop(name, grace)))

    def train_resume(name: str, queued: bool = False) -> dict:
        """Go on with a run from its newest checkpoint, now; `queued`: when no other job runs."""
        return _said(lambda: job_summary(desk.resume(name, queued=queued)))

    def queue_abort(name: str) -> bool:
        """Take a job that waits out of the queue."""
        _said(lambda: desk.jobs.abort(name))
        return True

    def jobs() -> list[dict]:
        """Queued, running and the latest finished jobs, with progress, and why a failed one failed."""
        return _said(desk.rows)

    for endpoint in (train_preview, train_start, queue_add, train_stop, train_resume, queue_abort, jobs):
        register(endpoint)


def job_summary(job: Job) -> dict[str, Any]:
    """A job as plain values."""
    return {
        "name": job.name,
        "kind": job.kind,
        "state": job.state,
        "command": list(job.command),
        "config": str(job.config_file) if job.config_file else None,
        "log": str(job.log_file),
    }


def _said(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error
