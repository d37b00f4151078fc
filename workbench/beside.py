"""Jobs that compute beside a measurement: they share the machine, so its times are spoilt, and it has to say so."""

from pathlib import Path

from workbench.jobs import Jobs


class Beside:
    """The jobs that were seen running while something was timed in this process, whose own work takes turns."""

    def __init__(self, runs: Path) -> None:
        """`runs`: the folder whose jobs are looked at."""
        self._jobs = Jobs(runs)
        self._seen: dict[str, None] = {}

    def look(self) -> None:
        """Note what runs now; call it between two timed stretches, never within one."""
        self._seen |= {job.name: None for job in self._jobs.list() if job.state == "running"}

    @property
    def sentence(self) -> str:
        """What a reader of the times has to know; empty where nothing ran beside them."""
        names = " and ".join(repr(name) for name in self._seen)
        return f"Times are spoilt by {names}, computing beside this." if names else ""
