"""Ending whatever a test has left in a workbench's queue."""

from waiting import until

from workbench.jobs import Jobs


def end_all(jobs: Jobs) -> None:
    """Take out what waits, kill what runs, and return once it is gone."""
    for job in jobs.list():
        if job.state == "queued":
            jobs.abort(job.name)
    for job in jobs.list():
        if job.state == "running":
            jobs.stop(job.name, grace=0)
    until(lambda: not any(job.active for job in jobs.list()), 60)
