"""One SGLang server that captures, as a running process."""

import http.client
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dflash.online.capture_proof import require_proof
from dflash.online.capture_settings import CaptureSettings
from dflash.online.child import Child
from dflash.online.environment import EngineEnvironment
from dflash.online.server_settings import ServerSettings

START_SECONDS = 1200.0  # a large model is read from a network disk in this time; a tiny one is up in 30 s


class ServerProcess:
    """A server, started at once and ready after `wait_ready`. Use it as a context manager, or call `stop`."""

    def __init__(
        self,
        settings: ServerSettings,
        capture: CaptureSettings,
        environment: EngineEnvironment,
        log: Path | str,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; `variables` are added to its environment."""
        self.settings, self._capture = settings, capture
        added = dict(variables or {}) | capture.environment()
        if settings.gpus:
            added["CUDA_VISIBLE_DEVICES"] = ",".join(settings.gpus)
        command = [str(environment.python), "-I", "-m", "sglang.launch_server", *settings.arguments()]
        self.child = Child(f"SGLang server {settings.url}", command, log, environment.variables() | added)

    @property
    def url(self) -> str:
        return self.settings.url

    def wait_ready(
        self, timeout: float = START_SECONDS, progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Wait until it serves, and captures; returns its description of itself. `progress` is told about the wait.

        Raises:
            ChildFailed: it ended, or is not up in time; with the end of its log.
            UserError: it serves, but does not capture as it should.
        """
        started, said = time.monotonic(), -1

        def ready() -> bool:
            nonlocal said
            seconds = int(time.monotonic() - started)
            if progress and seconds > said:
                said = seconds
                progress(f"waiting for {self.url} ({seconds} s)")
            return healthy(self.url)

        self.child.wait_until(ready, timeout, interval=0.25)
        return require_proof(
            self.url,
            layer_ids=self.settings.layer_ids,
            store=self._capture.master,
            store_last_hidden_states=self._capture.store_last_hidden_states,
        )

    def stop(self, grace: float = 5.0) -> None:
        """End it with all its processes. May be called twice."""
        self.child.stop(grace)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()


def progress_line(text: str) -> None:
    """Show `text` on stderr, over what was shown before; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def healthy(url: str) -> bool:
    """Whether an SGLang server answers that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
