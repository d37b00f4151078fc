"""What a run says of itself: metrics.jsonl, status.json, log.txt, the progress bar and the adapters; rank 0 alone."""

import logging
import resource
import sys
import threading
from typing import Any

import torch
from tqdm import tqdm

from dflash.config import TrainConfig
from dflash.training.metrics import Sinks, open_sinks
from dflash.training.run_folder import RunFolder
from dflash.training.world import World

_HEARTBEAT_SECONDS = 8.0  # readers take a run for dead that is silent for much longer than 10 s

LOG = logging.getLogger("dflash")


class Reporter:
    """A context manager around the whole run; on ranks other than the first its methods do nothing."""

    def __init__(self, run: RunFolder, config: TrainConfig, world: World, progress: bool) -> None:
        self._run, self._config, self._main, self._progress = run, config, world.is_main, progress
        self._where: dict[str, Any] = {}  # for the status: step, max_steps
        self._lock = threading.Lock()  # heartbeat and trainer write the same file
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._handlers: list[logging.Handler] = []
        self._sinks: Sinks | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> "Reporter":
        if self._main:
            self._open_log()
            self._write_status()
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._ended.set()
        if self._heart:
            self._heart.join()
        if self._bar is not None:
            self._bar.close()
        if self._sinks is not None:
            self._sinks.close()
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()

    def begin(self, step: int, max_steps: int) -> None:
        """All is loaded: open the adapters and the bar."""
        if not self._main:
            return
        self._sinks = open_sinks(self._config, self._run.path, after_step=step, say=LOG.info)
        # Off a terminal the log's lines say the same without filling a file with bars.
        hidden = not self._progress or not sys.stderr.isatty()
        self._bar = tqdm(total=max_steps, initial=step, unit="step", desc="train", disable=hidden)
        self.reach(step, max_steps)

    def reach(self, step: int, max_steps: int) -> None:
        """A step is done: move the bar and tell the status."""
        if not self._main:
            return
        self._where = {"step": step, "max_steps": max_steps}
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def metrics(self, record: dict[str, Any]) -> None:
        """Append to metrics.jsonl and send to the adapters."""
        if not self._main:
            return
        self._run.append_metrics(record)
        self._sinks.log(record, record["step"])
        self._write_status()

    def show(self, **values: str) -> None:
        """Beside the progress bar."""
        if self._bar is not None:
            self._bar.set_postfix(values)

    def note(self, text: str) -> None:
        """A line for log.txt."""
        if self._main:
            LOG.info(text)

    def warn(self, text: str) -> None:
        """A line for log.txt that interrupts the progress bar."""
        if self._main:
            LOG.warning(text)

    def _write_status(self) -> None:
        with self._lock:
            self._run.set_status("running", **self._where)

    def _beat(self) -> None:
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            try:
                self._write_status()
            except OSError as error:  # a full disk must not end a run that writes nothing else just now
                LOG.warning("status.json could not be written: %s", error)

    def _open_log(self) -> None:
        to_file = _LogFile(self._run.path / "log.txt", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_terminal = _AboveTheBar()
        to_terminal.setFormatter(logging.Formatter("%(message)s"))
        # On a terminal the bar says how it goes; only trouble interrupts it.
        to_terminal.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
        self._handlers = [to_file] + [to_terminal] * self._progress
        LOG.setLevel(logging.INFO)
        for handler in self._handlers:
            LOG.addHandler(handler)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by whoever could not save; a log line is not worth more than that."""


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this process has held so far: on its GPU, or in the host where it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
