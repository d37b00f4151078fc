"""One server's captures, from the first chunk of a prompt's rows to the answer that carries the record.

A prompt is prefilled in chunks. Its rows are gathered over all of them, handed to the writer with the last one, and the
finished request's answer is held back until the writer has an outcome: whoever gets a key can read what is under it.
All methods are called by the server's scheduler thread. Shapes: t tokens of a chunk, W width of a row.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dflash.online.capture_writer import CaptureWriter, Job

_STORED_AS = {"hidden_states": "features", "last_hidden_states": "last_hidden_states"}
_STATE = "dflash_capture"  # attribute of SGLang's request: what was gathered goes when the request goes


@dataclass
class _Progress:
    """How far the capture of one request has come."""

    parts: dict[str, list[torch.Tensor]]  # [t, W] per chunk, by the name that SGLang's output gives them
    job: Job | None = None  # once the whole prompt was seen
    settled: bool = False  # the job's outcome is known
    send: Callable[[], None] | None = None  # sends the answer that is held back


class PromptCapture:
    """Gathers, hands over, holds back and releases. Without a writer (on the other ranks of an attention group, which
    see the same rows) it only keeps SGLang from turning the rows into Python lists."""

    def __init__(self, writer: CaptureWriter | None, *, store_last_hidden_states: bool) -> None:
        self.store_last_hidden_states = store_last_hidden_states
        self._writer = writer
        self._open: dict[Job, _Progress] = {}

    @property
    def busy(self) -> bool:
        """Whether some outcome is still to come."""
        return bool(self._open)

    def take(self, req: Any, output: Any, start: int, length: int, *, complete: bool) -> None:
        """Note the rows [start, start + length) of a forward's output as the request's next ones.

        `complete` says that the request goes on after them: they end its prompt, and it was not aborted.
        """
        progress = self._progress(req)
        if progress.job is not None:
            return  # the prompt was captured before; these are rows of tokens that were generated
        if not complete and (req.finished() or req.is_retracted):
            delattr(req, _STATE)  # aborted, or to be prefilled again from the start
            return
        if self._writer is not None:
            for name, chunks in progress.parts.items():
                rows = getattr(output, name)
                if rows is not None:  # else the count will tell
                    chunks.append(_to_host(rows[start : start + length]))
        if complete:
            # Spares the server the rows of generated tokens, on all ranks alike, until the answer is sent.
            req.return_hidden_states = False
            self._hand_over(req, progress)

    def hold(self, req: Any, send: Callable[[], None]) -> bool:
        """Whether the answer has to wait; if so, `send` is called as soon as it can go."""
        progress: _Progress | None = getattr(req, _STATE, None)
        if self._writer is None or progress is None or progress.job is None:
            return False
        if not req.finished() or req.finished_output:
            return False  # not the final answer, or one that was sent already
        if progress.settled:
            _attach(req, progress)
            return False
        progress.send = send
        return True

    def release(self, wait: float = 0.0) -> None:
        """Send the answers whose captures were written, or failed; waits up to `wait` seconds for the first."""
        if not self._open:
            return
        for job in self._writer.collect(wait):
            progress = self._open.pop(job)
            progress.settled = True
            if progress.send is not None:
                progress.send()

    def report(self) -> dict[str, Any]:
        """Counts for whoever watches the server."""
        totals = asdict(self._writer.totals) if self._writer else {}
        return {"pending": len(self._open), **totals}

    def _progress(self, req: Any) -> _Progress:
        if not hasattr(req, _STATE):
            names = ("hidden_states", "last_hidden_states") if self.store_last_hidden_states else ("hidden_states",)
            setattr(req, _STATE, _Progress({name: [] for name in names}))
        return getattr(req, _STATE)

    def _hand_over(self, req: Any, progress: _Progress) -> None:
        progress.job = Job(req.rid, {_STORED_AS[name]: chunks for name, chunks in progress.parts.items()})
        if self._writer is None:
            return
        self._open[progress.job] = progress
        tokens = len(req.origin_input_ids)
        for name, chunks in progress.job.parts.items():
            if (rows := sum(map(len, chunks))) != tokens:
                self._writer.reject(progress.job, f"{rows} rows of {name} were captured for {tokens} tokens")
                return
        self._writer.submit(progress.job)


def _attach(req: Any, progress: _Progress) -> None:
    req.return_hidden_states = True
    req.hidden_states = [progress.job.record]


def _to_host(rows: torch.Tensor) -> torch.Tensor:
    """The rows in host memory that nothing overwrites. SGLang's asynchronous copies are pinned, and the batch's own."""
    return rows if rows.device.type == "cpu" and rows.is_pinned() else rows.detach().to("cpu", copy=True)
