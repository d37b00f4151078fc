"""The Mooncake master: the one process that knows which segment holds which object."""

import importlib.util
import os
import stat
from pathlib import Path

from dflash.errors import UserError
from dflash.online.child import Child
from dflash.online.master_settings import MasterSettings
from dflash.online.ports import why_unusable
from dflash.online.store import reachable
from dflash.online.store_errors import INSTALL

_START_SECONDS = 30.0


class MasterProcess:
    """A running master, ready for clients. Use it as a context manager, or call `stop`."""

    def __init__(self, log: Path | str, *, port: int, metrics_port: int, host: str = "127.0.0.1") -> None:
        """Start it and wait until it answers; `host` is the address it listens on, 0.0.0.0 for clients elsewhere.

        Raises:
            UserError: mooncake is not installed, or a port is in use.
            ChildFailed: it ended while starting, or does not answer.
        """
        for number, purpose in ((port, "Mooncake's master"), (metrics_port, "Mooncake's metrics")):
            if reason := why_unusable(host, number):
                raise UserError(f"Port {number} on {host} for {purpose} cannot be used ({reason}): choose another one.")
        settings = MasterSettings(port, metrics_port, host)
        self.address, self.metrics = settings.address, settings.metrics
        self.child = Child("The Mooncake master", [str(master_program()), *settings.arguments()], log)
        try:
            self.child.wait_until(lambda: reachable(self.address) and reachable(self.metrics), _START_SECONDS)
        except BaseException:
            self.child.stop()
            raise

    def stop(self) -> None:
        """End it; clients notice by MasterDown. May be called twice."""
        self.child.stop()

    def __enter__(self) -> "MasterProcess":
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()


def master_program() -> Path:
    """The program inside the wheel; the console script would only exec it.

    Raises:
        UserError: mooncake is not installed.
    """
    package = importlib.util.find_spec("mooncake")
    path = Path(package.origin).parent / "mooncake_master" if package and package.origin else None
    if path is None or not path.is_file():
        raise UserError(f"The program mooncake_master is missing: {INSTALL}.")
    if not os.access(path, os.X_OK):  # a wheel does not keep the permission
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path
