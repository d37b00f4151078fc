"""The small process beside every job: starts it, passes a stop on to it, writes down how it ended, starts the next one.

    python -m workbench.keeper FOLDER_OF_THE_JOB

It belongs to nobody: neither the workbench that started it nor that one's terminal takes it along when it ends.
Standard library and psutil only, so that it is small and starts at once.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from workbench.job import read_json, write_json
from workbench.process import identity

_ADOPTS = sys.platform == "linux"
_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 180.0  # seconds between SIGTERM and SIGKILL, unless the stop says otherwise
_LOOK_EVERY = 0.1  # seconds
_ROOM = 256  # bytes of exit.json
_LEFT_BEHIND_GRACE = 5.0  # seconds for processes that outlive the job


def main() -> None:
    """Detach, start the job, and stay with it. Exits 0 once the job runs, in the process that the caller waits for."""
    folder = Path(sys.argv[1])
    read_end, write_end = os.pipe()
    if os.fork():
        # The caller's child: it says whether the job was started, and is gone, so that nobody has to collect a zombie.
        os.close(write_end)
        answer = os.read(read_end, 4096)
        sys.stderr.write(answer.decode()[1:])
        sys.stderr.flush()
        os._exit(0 if answer.startswith(b"+") else 1)
    os.close(read_end)
    os.setsid()
    _detach_output()
    try:
        keeper = Keeper(folder)
    except OSError as error:
        os.write(write_end, f"-{error.strerror or error}".encode())
        os._exit(1)
    os.write(write_end, b"+")
    os.close(write_end)
    keeper.stay()


class Keeper:
    """Watches one job."""

    def __init__(self, folder: Path) -> None:
        """Start the job.

        Raises:
            OSError: its program cannot be run, or its folder not be written.
        """
        self.folder = folder
        self._term_sent: float | None = None
        self._asked_from_outside = False
        _adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        spec = read_json(folder / "job.json")
        write_json(folder / "keeper.json", identity(os.getpid()))
        # Room for the record of the end, taken now: the job may end because the disk is full.
        (folder / "exit.json").write_text(" " * _ROOM, encoding="ascii")
        with open(folder / "output.log", "ab") as output:
            self._job = subprocess.Popen(
                spec["command"],
                cwd=spec["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        try:
            write_json(folder / "process.json", {**identity(self._job.pid), "time": time.time()})
        except OSError:  # a full disk: nobody would know of it
            self._signal_group(signal.SIGKILL)
            raise

    def stay(self) -> None:
        """Until the job has ended; then record how, leave nothing of it behind, and let the next queued one begin."""
        while self._job.poll() is None:
            self._pass_on_stop()
            self._bury_orphans()
            time.sleep(_LOOK_EVERY)
        self._sweep()
        self._record_exit()

        from workbench.jobs import Jobs  # only now, since it imports this module's neighbours

        Jobs(self.folder.parent.parent).advance()

    def _pass_on_stop(self) -> None:
        asked = read_json(self.folder / "stop.json")
        if not (asked or self._asked_from_outside):
            return
        if self._term_sent is None:
            self._term_sent = time.monotonic()
            self._signal_group(signal.SIGTERM)
        elif time.monotonic() - self._term_sent > asked.get("grace", _GRACE):
            for process in psutil.Process().children(recursive=True):
                _send(process, signal.SIGKILL)
            self._signal_group(signal.SIGKILL)

    def _bury_orphans(self) -> None:
        """Collect adopted processes that have ended: as zombies they would fill the table of processes."""
        while _ADOPTS and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            if ended.si_pid == self._job.pid:
                return  # `stay` collects it, with its exit code
            os.waitpid(ended.si_pid, 0)

    def _sweep(self) -> None:
        """End what the job left running: its group, and what went into groups of its own, as torchrun's ranks do."""
        left = psutil.Process().children(recursive=True)
        for process in left:
            _send(process, signal.SIGTERM)
        grace = _LEFT_BEHIND_GRACE
        if self._term_sent is not None:  # the first to go need not be the one that saves
            asked = read_json(self.folder / "stop.json").get("grace", _GRACE)
            grace = max(0.0, self._term_sent + asked - time.monotonic())
        _, stubborn = psutil.wait_procs(left, timeout=grace)
        for process in stubborn:
            _send(process, signal.SIGKILL)

    def _record_exit(self) -> None:
        record = json.dumps({"code": self._job.returncode, "time": time.time()})
        with open(self.folder / "exit.json", "r+", encoding="ascii") as file:
            file.write(record.ljust(_ROOM))
            file.flush()
            os.fsync(file.fileno())

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._job.pid, number)  # not collected yet, so that its number is still its own
        except ProcessLookupError:
            pass  # the whole group has ended

    def _on_signal(self, _number, _frame) -> None:
        self._asked_from_outside = True


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it ended in between


def _adopt_orphans() -> None:
    """What the job starts and leaves behind becomes this process's child; where that cannot be, its group must do."""
    if _ADOPTS:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _detach_output() -> None:
    """The starter's terminal or pipes may go away before this process does."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


if __name__ == "__main__":
    main()
