"""Jobs of the workbench: trainings and evaluations as processes of their own, which its end or restart leaves alone.

Nothing about a job is kept in memory. Each has a folder (`job.py`) below `<runs>/.jobs`, a keeper process (`keeper.py`)
that starts it, stops it and writes down how it ended, and a log file. The queue has no process either: whoever queues
a job while nothing runs starts it, and a keeper whose job has ended starts the next one, so that it goes on without a
workbench. All that starts something happens under one file lock: of two workbenches on one runs folder only one does.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL, SIGTERM

from dflash.errors import UserError
from dflash.files import locked
from workbench.job import Job, read_json, write_json
from workbench.process import identity

GRACE = 180.0  # seconds that a job has after SIGTERM to end its step, save a checkpoint and exit
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TRACES = ("process.json", "keeper.json", "stop.json", "exit.json")


class Jobs:
    """All jobs of one runs folder. Any number of these, in any number of processes, may exist at once."""

    def __init__(self, root: Path | str) -> None:
        """`root`: the runs folder; it is made when something is first asked of a job."""
        self.root = Path(root).absolute()
        self.folder = self.root / ".jobs"

    def start(
        self,
        command: Sequence[str],
        *,
        kind: str,
        name: str,
        config: str | None = None,
        resume_command: Sequence[str] | None = None,
    ) -> Job:
        """Start a command now, whatever else runs.

        `command` is an argument list, never a shell string; `{config}` as a whole argument stands for the file into
        which the text `config` is frozen. `resume_command` is what `resume` runs later. One name belongs to one job,
        whatever its kind; a job that is over gives its name back.

        Raises:
            UserError: the name is no plain name or belongs to an active job, or the command cannot be run.
        """
        with self._locked():
            self._record("started", command, kind, name, config, resume_command)
            return self._launch(name)

    def enqueue(
        self,
        command: Sequence[str],
        *,
        kind: str,
        name: str,
        config: str | None = None,
        resume_command: Sequence[str] | None = None,
    ) -> Job:
        """As `start`, but wait until no other job of this runs folder runs; queued jobs take turns.

        Raises:
            UserError: as `start`.
        """
        with self._locked():
            self._record("queued", command, kind, name, config, resume_command)
            self._advance()
            return self.get(name)

    def stop(self, name: str, grace: float = GRACE) -> Job:
        """Ask a running job to save and exit (SIGTERM to its group); after `grace` seconds it is killed.

        Returns at once: read the job again to see it go. A second call may shorten the time that is left.

        Raises:
            UserError: there is no such job, or it does not run.
        """
        with self._locked():
            job = self.get(name)
            if job.state == "queued":
                raise UserError(f"Job {name!r} has not started yet: abort it instead.")
            self._need_running(job)
            stop = {"time": job.stop_requested or time.time(), "grace": grace}
            if self._is_kept(job):
                write_json(job.folder / "stop.json", stop)
            else:
                self._stop_unkept(job, stop)
            return self.get(name)

    def abort(self, name: str) -> None:
        """Take a job out of the queue: nothing of it is left, or it is over as it was before it waited to be resumed.

        Raises:
            UserError: there is no such job, or it has started.
        """
        with self._locked():
            job = self.get(name)
            if job.state != "queued":
                raise UserError(f"Job {name!r} is not waiting any more ({job.state}): a running one can be stopped.")
            if any((job.folder / trace).exists() for trace in _TRACES):
                write_json(job.folder / "job.json", {**read_json(job.folder / "job.json"), "state": "started"})
            else:
                shutil.rmtree(job.folder)

    def resume(self, name: str, *, queued: bool = False) -> Job:
        """Go on with a job that is over, with its resume command; its output goes on in the same file.

        `queued`: when its turn comes, as with `enqueue`; else now, whatever else runs.

        Raises:
            UserError: there is no such job, it is active, or it cannot be resumed.
        """
        with self._locked():
            job = self.get(name)
            if job.active:
                raise UserError(f"Job {name!r} is still {job.state}: there is nothing to resume.")
            if job.resume_command is None:
                raise UserError(f"Job {name!r} cannot be resumed: start it again instead.")
            again = {"command": list(job.resume_command), "created": time.time(), "state": "queued"}
            spec = {**read_json(job.folder / "job.json"), **again}
            write_json(job.folder / "job.json", spec)
            if queued:
                self._advance()
                return self.get(name)
            self._mark_started(job.folder, spec)
            return self._launch(name)

    def list(self) -> list[Job]:
        """Queued ones in the order of their turn, then all others, the newest first. Damaged records are left out."""
        try:
            folders = [entry for entry in self.folder.iterdir() if _NAME.fullmatch(entry.name)]
        except OSError:
            return []
        jobs = [job for job in map(Job.read, folders) if job is not None]
        queued = sorted((j for j in jobs if j.state == "queued"), key=lambda j: j.created)
        return queued + sorted((j for j in jobs if j.state != "queued"), key=lambda j: j.started or 0.0, reverse=True)

    def get(self, name: str) -> Job:
        """
        Raises:
            UserError: there is no such job, or its record is damaged.
        """
        job = Job.read(self._place(name))
        if job is None:
            raise UserError(f"There is no job {name!r} in {self.folder}: reload the page to see those there are.")
        return job

    def find(self, name: str) -> Job | None:
        """The job of that name, None where there is none: runs may also be started in a terminal."""
        return Job.read(self._place(name))

    def advance(self) -> None:
        """Start the next queued job if its turn has come. Keepers call it; call it too where a queue is looked at."""
        # Looked at first without the lock, which pages that ask every two seconds would hold against one another.
        if any(job.state == "queued" for job in self.list()):
            with self._locked():
                self._advance()

    def _advance(self) -> None:
        while True:
            jobs = self.list()
            waiting = [job for job in jobs if job.state == "queued"]
            if not waiting or any(job.state == "running" for job in jobs):
                return
            turn = waiting[0]
            self._mark_started(turn.folder, read_json(turn.folder / "job.json"))
            try:
                self._launch(turn.name)
            except UserError as error:
                # Nobody is there to hear it: it becomes the job's own output, and the next one has its turn.
                turn.log_file.write_text(f"dflash: {error}\n", encoding="utf-8")
                write_json(turn.folder / "exit.json", {"code": 127, "time": time.time()})

    def _record(
        self,
        state: str,
        command: Sequence[str],
        kind: str,
        name: str,
        config: str | None,
        resume_command: Sequence[str] | None,
    ) -> None:
        """Write down a new job; the one that had this name before must be over."""
        folder = self._place(name)
        before = Job.read(folder)
        if before is not None and before.active:
            raise UserError(f"Job {name!r} is {before.state} already: choose another name, or wait for its end.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._forget_traces(folder)
            (folder / "output.log").unlink(missing_ok=True)
            (folder / "config.yaml").unlink(missing_ok=True)
            if config is not None:
                (folder / "config.yaml").write_text(config, encoding="utf-8")
            frozen = str(folder / "config.yaml")
            spec = {
                "name": name,
                "kind": kind,
                "command": [frozen if word == "{config}" else word for word in command],
                "resume_command": None if resume_command is None else list(resume_command),
                "cwd": os.getcwd(),
                "created": time.time(),
                "state": "queued",
            }
            if state == "queued":
                write_json(folder / "job.json", spec)
            else:
                self._mark_started(folder, spec)
        except OSError as error:
            raise UserError(f"Job {name!r} could not be recorded in {folder}: {error.strerror}.") from error

    def _mark_started(self, folder: Path, spec: dict) -> None:
        """From now on until its keeper is there, this process answers for the job: readers would think it lost."""
        self._forget_traces(folder)  # of the sitting before, for one that is resumed
        write_json(folder / "keeper.json", identity(os.getpid()))
        write_json(folder / "job.json", {**spec, "state": "started"})

    def _launch(self, name: str) -> Job:
        """Start a recorded job under a keeper of its own, and return once it runs."""
        folder = self._place(name)
        # The keeper imports this package from wherever this process did.
        package = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        begun = subprocess.run(
            [sys.executable, "-m", "workbench.keeper", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        if begun.returncode:
            command = read_json(folder / "job.json")["command"]
            self._forget_traces(folder)
            write_json(folder / "exit.json", {"code": 127, "time": time.time()})
            raise UserError(f"Job {name!r} could not be started: {command[0]!r}: {begun.stderr.strip()}.")
        return self.get(name)

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UserError(f"Name {name!r} is no plain name: use up to 100 letters, digits, '-', '_' and '.'.")
        return self.folder / name

    @staticmethod
    def _need_running(job: Job) -> None:
        if job.state != "running":
            raise UserError(f"Job {job.name!r} does not run (it is {job.state}): there is nothing to stop.")

    @staticmethod
    def _stop_unkept(job: Job, stop: dict) -> None:
        """Signal a job whose keeper was killed. Nobody waits for the grace to pass here: a later stop looks at it.

        A launcher is asked alone, to bring its parts down itself; they are written down, since nothing leads to those
        in groups of their own once it is gone.
        """
        parts = list(dict.fromkeys([*job.process.tree(), *job.parts]))
        write_json(job.folder / "stop.json", {**stop, "parts": [vars(part) for part in parts]})
        overdue, leaderless = time.time() - stop["time"] >= stop["grace"], not job.process.is_alive()
        number = SIGKILL if overdue else SIGTERM
        job.process.signal_group(number)
        if overdue or leaderless:
            for part in parts:
                part.send(number)

    @staticmethod
    def _is_kept(job: Job) -> bool:
        return job.keeper is not None and job.keeper.is_alive()

    @staticmethod
    def _forget_traces(folder: Path) -> None:
        for name in _TRACES:
            (folder / name).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.folder / ".lock"))
            except OSError as error:
                place = str(self.folder)
                raise UserError(f"The jobs' folder {place!r} cannot be written: {error.strerror}.") from error
            yield
