"""A supervised process: own process group, output in a file, ended with its parent, never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dflash.online import tether

_TAIL_BYTES, _LINE_CHARS = 16 << 10, 1000  # of a log's end, and of each line in it
_KILLED_SECONDS = 30.0  # for the kernel to end what was killed; a driver may keep it for ever


class ChildFailed(Exception):
    """A process ended, or was not ready in time; the message has its exit code and the end of its log."""


class Child:
    """One running process. Use it as a context manager, or call `stop`."""

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path | str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; its output is appended to `log`.

        Raises:
            RuntimeError: called outside the main thread. Linux ties a child to the thread that started it.
            OSError: the log cannot be written.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("processes are started from the main thread: they would end with any other")
        self.name, self.log = name, Path(log)
        wrapped = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *arguments]
        with open(self.log, "ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process itself, and of its process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or the negative number of the signal that ended it; None while it runs."""
        return self._process.poll()

    def wait_until(self, ready: Callable[[], bool], timeout: float, interval: float = 0.05) -> None:
        """Return as soon as `ready` says so.

        Raises:
            ChildFailed: the process ended before, or `timeout` seconds were over.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} was not ready after {timeout:g} s. {self.last_words()}")
            time.sleep(interval)

    def check(self) -> None:
        """Raise ChildFailed if the process has ended."""
        if self.returncode is not None:
            raise ChildFailed(f"{self.name} ended with {describe_exit(self.returncode)}. {self.last_words()}")

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that this process wrote, of long ones their beginnings and ends."""
        try:
            with open(self.log, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - _TAIL_BYTES))
                text = file.read(_TAIL_BYTES).decode(errors="replace")
        except OSError as error:  # removed meanwhile, say: what the process ended with must be told all the same
            return f"(it cannot be read: {error.strerror})"
        return "\n".join(map(_shortened, text.splitlines()[-lines:]))

    def terminate(self) -> None:
        """Ask the whole process group to end, and wait for nothing: of several, each may take its time at once."""
        self._signal(signal.SIGTERM)

    def stop(self, grace: float = 5.0) -> None:
        """End the whole process group: SIGTERM, after `grace` seconds SIGKILL. May be called twice.

        Raises:
            ChildFailed: the kernel does not end it, though it was killed.
        """
        self.terminate()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
        # Always: the process may have gone and left members of its group behind.
        self._signal(signal.SIGKILL)
        try:
            self._process.wait(_KILLED_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(
                f"{self.name} (process {self.pid}) was killed {_KILLED_SECONDS:g} s ago and is still there, held by a "
                "driver or a disk: look at it with ps, and restart the machine where it stays."
            ) from error

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # the whole group has ended

    def last_words(self) -> str:
        """The end of its log, and where that is."""
        return f"The end of its log ({self.log}):\n{self.log_tail()}"


def describe_exit(returncode: int) -> str:
    """An exit status in words, such as "exit code 1" or "signal SIGKILL"."""
    if returncode >= 0:
        return f"exit code {returncode}"
    named = -returncode in list(signal.Signals)  # real-time signals have no names
    return f"signal {signal.Signals(-returncode).name if named else -returncode}"


def _shortened(line: str) -> str:
    """Its beginning, which says what it is about, and its end, where it is too long."""
    return line if len(line) <= _LINE_CHARS else f"{line[: _LINE_CHARS // 2]} ... {line[-_LINE_CHARS // 2 :]}"
