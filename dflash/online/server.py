"""One SGLang server that captures: its command line, and the running process."""

import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.online.capture_proof import require_proof
from dflash.online.capture_settings import CaptureSettings
from dflash.online.child import Child
from dflash.online.environment import EngineEnvironment

START_SECONDS = 1200.0  # a large model is read from a network disk in this time; a tiny one is up in 30 s


@dataclass(frozen=True)
class ServerSettings:
    """What one server serves, and on what. None leaves a choice to SGLang."""

    model: str  # folder or Hugging Face id
    layer_ids: tuple[int, ...]  # 0-based decoder layers; the last one's output cannot be captured
    port: int
    host: str = "127.0.0.1"  # address it listens on
    dtype: str = "bfloat16"
    revision: str | None = None
    context_length: int | None = None  # longest prompt plus one token; longer ones are refused
    chunked_prefill: int | None = None  # tokens of a prefill chunk
    gpus: tuple[int, ...] = ()  # of tensor parallelism; none on a CPU
    cached_tokens: int = 4096  # on a CPU: size of the KV cache, which takes a minute to set up at SGLang's own choice
    memory_fraction: float | None = None  # of a GPU's memory, for weights and KV cache
    extra: tuple[str, ...] = ()  # more arguments of SGLang, as they are

    @property
    def url(self) -> str:
        """Where clients on the same machine reach it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    def arguments(self) -> list[str]:
        """The arguments of `sglang.launch_server`."""
        arguments = [
            f"--model-path={self.model}",
            f"--host={self.host}",
            f"--port={self.port}",
            f"--dtype={self.dtype}",
            # Names how layer ids are counted; no draft is loaded.
            "--speculative-algorithm=DFLASH",
            "--enable-return-aux-hidden-states",
            "--return-aux-hidden-state-layer-ids",
            *map(str, self.layer_ids),
            "--disable-radix-cache",  # tokens found in it would not be computed, so not captured
            "--skip-server-warmup",
        ]
        optional = {
            "--revision": self.revision,
            "--context-length": self.context_length,
            "--chunked-prefill-size": self.chunked_prefill,
            "--mem-fraction-static": self.memory_fraction,
        }
        arguments += [f"{name}={value}" for name, value in optional.items() if value is not None]
        if self.gpus:
            arguments += [f"--tp-size={len(self.gpus)}"]
        else:
            # An idle scheduler would keep one of the cores busy that the trainer needs.
            arguments += ["--device=cpu", "--attention-backend=torch_native", "--sleep-on-idle"]
            arguments += [f"--max-total-tokens={self.cached_tokens}"]
        return [*arguments, *self.extra]


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
            added["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, settings.gpus))
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
            return _healthy(self.url)

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


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False
