"""A Mooncake master and the SGLang servers beside it, watched and, where that is asked for, started again."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dflash.errors import UserError
from dflash.online.child import Child, describe_exit
from dflash.online.deployment import Deployment
from dflash.online.master import MasterProcess
from dflash.online.server import ServerProcess, healthy
from dflash.online.server_settings import ServerSettings

_TICK_SECONDS = 0.25
_STOP_SECONDS = 10.0  # that servers have to end by themselves


class PartFailed(Exception):
    """A part of a running pipeline ended and is not started again; the message has its exit code and its log's end."""


@dataclass(frozen=True)
class Policy:
    """What happens when a part ends by itself."""

    restarts: int  # of each part; 0 ends everything
    start_seconds: float = 1200.0  # longest wait for a server to be ready


@dataclass(eq=False)
class _Server:
    settings: ServerSettings
    log: Path
    restarts_left: int
    process: ServerProcess | None = None
    started: float = 0.0  # by the monotonic clock
    first: bool = True  # whether it has never been ready
    ready: bool = False


class Engines:
    """Started by `start`, watched by `tick`, which has to be called every now and then. Use it as a context manager."""

    def __init__(self, deployment: Deployment, logs: Path, policy: Policy, say: Callable[[str], None]) -> None:
        """`say` is told, in sentences, what happens."""
        self.master: MasterProcess | None = None
        self._deployment, self._logs, self._policy, self._say = deployment, logs, policy, say
        self._master_restarts = policy.restarts
        self._prove: Callable[[str], None] | None = None
        self._servers = [
            _Server(settings, logs / f"server-{number}.log", policy.restarts)
            for number, settings in enumerate(deployment.servers)
        ]

    def start_master(self) -> None:
        """Start the master, unless the deployment has none, and wait until it answers.

        Raises:
            UserError, ChildFailed: as `MasterProcess`.
        """
        if settings := self._deployment.master:
            self.master = MasterProcess(
                self._logs / "master.log", port=settings.port, metrics_port=settings.metrics_port, host=settings.host
            )

    def start_servers(self, prove: Callable[[str], None]) -> None:
        """Start all servers and come back at once; `prove(url)` has to raise where a server does not do its work."""
        self._prove = prove
        for server in self._servers:
            self._start(server)

    def wait_ready(self, stopped: Callable[[], bool], waiting: Callable[[str], None]) -> None:
        """Return when all servers are ready, or `stopped` says so; `waiting` is told what for, all the time.

        Raises:
            PartFailed, UserError: as `tick`.
        """
        began = time.monotonic()
        while not self.all_ready and not stopped():
            self.tick()
            missing = [server.settings.url for server in self._servers if not server.ready]
            if missing:
                waiting(f"waiting for {', '.join(missing)} ({time.monotonic() - began:.0f} s)")
                time.sleep(_TICK_SECONDS)

    @property
    def all_ready(self) -> bool:
        """Whether every server serves, and has proved that it captures."""
        return all(server.ready for server in self._servers)

    @property
    def can_serve(self) -> bool:
        """Whether a document could be captured now."""
        master_runs = self.master is None or self.master.child.returncode is None
        return master_runs and any(s.ready and s.process.child.returncode is None for s in self._servers)

    def tick(self) -> None:
        """Notice what ended or got ready since the last time, and start again what may be.

        Raises:
            PartFailed: something ended and stays so, or a server does not get ready.
            UserError: a server does not capture as it should.
        """
        if self.master is not None and self.master.child.returncode is not None:
            self._restart_master()
        for server in self._servers:
            if server.process.child.returncode is not None:
                self._restart(server)
            elif not server.ready:
                self._look_whether_ready(server)

    def stop(self) -> None:
        """End all servers, then the master. May be called twice."""
        running = [server.process for server in self._servers if server.process is not None]
        for process in running:
            process.child.terminate()
        with ExitStack() as stops:  # whatever becomes of one, the others are ended, too; the master last
            if self.master is not None:
                stops.callback(self.master.stop)
            for process in running:
                stops.callback(process.stop, _STOP_SECONDS)

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()

    def _start(self, server: _Server) -> None:
        deployment = self._deployment
        server.ready, server.started = False, time.monotonic()
        server.process = ServerProcess(server.settings, deployment.capture, deployment.environment, server.log)

    def _look_whether_ready(self, server: _Server) -> None:
        url, seconds = server.settings.url, time.monotonic() - server.started
        if healthy(url) and self._has_proved_itself(server, seconds):
            server.ready, server.first = True, False
            ready = sum(one.ready for one in self._servers)
            self._say(f"Server {url} is ready after {seconds:.0f} s ({ready} of {len(self._servers)}).")
        elif seconds > self._policy.start_seconds:
            child = server.process.child
            raise PartFailed(f"{child.name} was not ready after {seconds:.0f} s. {child.last_words()}")

    def _has_proved_itself(self, server: _Server, seconds: float) -> bool:
        """At the first start anything wrong is raised; later the store may be starting again, too, which takes time."""
        try:
            self._prove(server.settings.url)
        except UserError:
            if server.first or seconds > self._policy.start_seconds:
                raise
            return False
        return True

    def _restart(self, server: _Server) -> None:
        child = server.process.child
        server.restarts_left = self._spend(child, server.restarts_left)
        server.process.stop(grace=0.0)  # what it left of its group
        self._start(server)

    def _restart_master(self) -> None:
        self._master_restarts = self._spend(self.master.child, self._master_restarts)
        self.master.stop()
        self.start_master()

    def _spend(self, child: Child, restarts_left: int) -> int:
        """Restarts that are left after this one.

        Raises:
            PartFailed: there is none.
        """
        ended = f"{child.name} ended with {describe_exit(child.returncode)}"
        if not restarts_left:
            raise PartFailed(f"{ended}. {child.last_words()}")
        self._say(f"{ended}; it is started again ({restarts_left - 1} restart(s) left). Its log: {child.log}")
        return restarts_left - 1
