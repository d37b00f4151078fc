"""Which process a number means: a pid is used again sooner or later, a pid with its start time never."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessId:
    """One process of one boot of this machine. `started` is text that no later process of the same pid shares."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """The process that has this pid now; None when there is none, or only a zombie whose work is over."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_time(self.pid) == self.started

    def tree(self) -> list["ProcessId"]:
        """This process and all that it started, and those in turn, whatever their groups; empty once it is gone."""
        if not self.is_alive():
            return []
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [self, *filter(None, (ProcessId.of(child.pid) for child in children))]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; nothing happens when it is gone."""
        self._signal(os.kill, number)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process group that this process leads; nothing happens when it is gone."""
        self._signal(os.killpg, number)

    def _signal(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        if self.is_alive():
            with suppress(ProcessLookupError):  # it ended in between
                send(self.pid, number)


def identity(pid: int) -> dict[str, int | str]:
    """What to write down of a process. One that has ended already is never taken for another later."""
    process = ProcessId.of(pid)
    return {"pid": pid, "started": process.started if process else ""}


def _start_time(pid: int) -> str | None:
    """Linux counts clock ticks since boot, which setting the clock leaves alone; elsewhere it is the time of day."""
    stat = Path("/proc") / str(pid) / "stat"
    if _BOOT_ID.exists():
        try:
            # The second field is the program's name in parentheses and may hold anything, spaces included.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        state, ticks = fields[0], fields[19]
        return None if state in "ZX" else f"{_BOOT_ID.read_text(encoding='ascii').strip()}/{ticks}"
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
