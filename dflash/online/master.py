"""The Mooncake master: the one process that knows which segment holds which object."""

import importlib.util
import os
import socket
import stat
from pathlib import Path

from dflash.errors import UserError
from dflash.online.child import Child
from dflash.online.store import INSTALL, reachable

_START_SECONDS = 30.0
_LEASE_MS = 5000  # how long a read protects an object from an unforced removal; ours are forced
_CLIENT_TTL_S = 5  # after so many seconds without a heartbeat a client's segment, and what lies in it, is dropped


class MasterProcess:
    """A running master, ready for clients. Use it as a context manager, or call `stop`."""

    def __init__(self, log: Path | str, *, port: int, metrics_port: int, host: str = "127.0.0.1") -> None:
        """Start it and wait until it answers; `host` is the address it listens on, 0.0.0.0 for clients elsewhere.

        Raises:
            UserError: mooncake is not installed, or a port is in use.
            ChildFailed: it ended while starting, or does not answer.
        """
        for number, purpose in ((port, "Mooncake's master"), (metrics_port, "Mooncake's metrics")):
            _require_free(host, number, purpose)
        reach = "127.0.0.1" if host == "0.0.0.0" else host
        self.address, self.metrics = f"{reach}:{port}", f"{reach}:{metrics_port}"
        self.child = Child("The Mooncake master", _command(host, port, metrics_port), log)
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


def free_port() -> int:
    """A port on which nothing listens right now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _require_free(host: str, port: int, purpose: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no obstacle
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"Port {port} on {host} for {purpose} cannot be used ({error.strerror}): choose another one."
            ) from error


def _command(host: str, port: int, metrics_port: int) -> list[str]:
    return [
        str(_binary()),
        f"--rpc_address={host}",
        f"--rpc_port={port}",
        f"--metrics_host={host}",
        f"--metrics_port={metrics_port}",  # bound in any case: the default would collide with another master's
        f"--default_kv_lease_ttl={_LEASE_MS}",
        f"--client_ttl={_CLIENT_TTL_S}",
        "--enable_metric_reporting=false",  # a line in the log every few seconds; the HTTP port has the same numbers
    ]


def _binary() -> Path:
    """The program inside the wheel; the console script would only exec it."""
    package = importlib.util.find_spec("mooncake")
    path = Path(package.origin).parent / "mooncake_master" if package and package.origin else None
    if path is None or not path.is_file():
        raise UserError(f"The program mooncake_master is missing: {INSTALL}.")
    if not os.access(path, os.X_OK):  # a wheel does not keep the permission
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path
