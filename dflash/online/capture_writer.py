"""Puts captured rows into the store, in a thread of its own, so that the server's scheduler never waits for it.

Shapes: T tokens of a prompt, W width of a row (captured layers x hidden size).
"""

import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dflash.online.capture_record import CaptureRecord, StoredTensor, failure

_ADHOC = "dflash/adhoc"  # where the objects of requests go whose id names no run
_FULL_SECONDS = 60.0  # how long a full queue may hold the scheduler up before the request fails


class Store(Protocol):
    """What the writer needs of `dflash.online.store.MooncakeStore`."""

    def allocate(self, size: int) -> torch.Tensor: ...
    def release(self, buffer: torch.Tensor) -> None: ...
    def put(self, tensors: Mapping[str, torch.Tensor]) -> None: ...
    def close(self) -> None: ...


@dataclass(eq=False)  # two jobs are never the same one
class Job:
    """One prompt: its rows by name ("features", "last_hidden_states"), each a list of [t, W] host tensors in order."""

    request_id: str
    parts: dict[str, list[torch.Tensor]]
    record: dict[str, Any] | None = None  # the outcome, None until it is known

    @property
    def bytes(self) -> int:
        return sum(rows.nbytes for part in self.parts.values() for rows in part)


@dataclass
class Totals:
    """What a writer has done since it started."""

    written: int = 0
    failed: int = 0
    tokens: int = 0
    bytes: int = 0
    held_up_seconds: float = 0.0  # that the scheduler spent waiting for room in the queue


class CaptureWriter:
    """Writes jobs in the order in which they were submitted; every one of them gets a record, whatever happens."""

    def __init__(self, store: Store, layer_ids: Sequence[int], queue_bytes: int) -> None:
        self.totals = Totals()
        self._store, self._layer_ids, self._queue_bytes = store, tuple(layer_ids), queue_bytes
        self._staging: torch.Tensor | None = None  # registered memory, as large as the largest job so far
        self._waiting: deque[Job] = deque()
        self._waiting_bytes = 0
        self._finished: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="dflash-capture-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Waits while the queue is full; a queue that stays full fails the job."""
        with self._changed:
            # A job larger than the whole queue passes when it is alone: it must not wait for ever.
            started = time.monotonic()
            room = self._changed.wait_for(
                lambda: not self._waiting or self._waiting_bytes + job.bytes <= self._queue_bytes, _FULL_SECONDS
            )
            self.totals.held_up_seconds += time.monotonic() - started
            if not room:
                self._settle(
                    job, failure(f"the queue of captures was full for {_FULL_SECONDS:g} s: the store is too slow")
                )
                return
            self._waiting.append(job)
            self._waiting_bytes += job.bytes
            self._changed.notify_all()

    def reject(self, job: Job, reason: str) -> None:
        """Give the job the record of a failure without writing it."""
        with self._changed:
            self._settle(job, failure(reason))

    def collect(self, wait: float = 0.0) -> list[Job]:
        """Finished jobs, each given out once; waits up to `wait` seconds for the first."""
        with self._changed:
            if wait and not self._finished:
                self._changed.wait_for(lambda: self._finished, wait)
            finished = list(self._finished)
            self._finished.clear()
            return finished

    def close(self) -> None:
        """End the thread after what was submitted, and leave the store."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._store.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._waiting[0]  # stays there while it is written, so that it counts as waiting
            try:
                record = self._write(job)
            except Exception as error:  # whatever it is belongs to this request, and the next one is tried all the same
                record = failure(f"{type(error).__name__}: {error}")
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= job.bytes
                self._settle(job, record)

    def _settle(self, job: Job, record: dict[str, Any]) -> None:
        job.record = record
        if "error" in record:
            self.totals.failed += 1
        else:
            self.totals.written += 1
            self.totals.tokens += record["features"]["shape"][0]
            self.totals.bytes += job.bytes
        job.parts = {}
        self._finished.append(job)
        self._changed.notify_all()

    def _write(self, job: Job) -> dict[str, Any]:
        staged = self._stage(job)
        # A retried request must never meet the objects of its first try.
        owner = job.request_id if job.request_id.startswith("dflash/") else f"{_ADHOC}/{job.request_id}"
        fresh = uuid.uuid4().hex
        stored = {
            name: StoredTensor(
                f"{owner}/{fresh}/{name}", tuple(rows.shape), str(rows.dtype).removeprefix("torch."), rows.nbytes
            )
            for name, rows in staged.items()
        }
        self._store.put({stored[name].key: rows for name, rows in staged.items()})
        return CaptureRecord(self._layer_ids, stored["features"], stored.get("last_hidden_states")).to_json()

    def _stage(self, job: Job) -> dict[str, torch.Tensor]:
        """The job's parts, each one tensor [T, W], in registered memory."""
        if self._staging is None or self._staging.nbytes < job.bytes:
            if self._staging is not None:
                self._store.release(self._staging)
                self._staging = None
            # In powers of two, so that slowly growing prompts do not register memory again and again.
            self._staging = self._store.allocate(1 << (job.bytes - 1).bit_length())
        staged, start = {}, 0
        for name, rows in job.parts.items():
            size = sum(chunk.nbytes for chunk in rows)
            shape = (sum(len(chunk) for chunk in rows), rows[0].shape[1])
            staged[name] = self._staging[start : start + size].view(rows[0].dtype).view(shape)
            torch.cat(rows, out=staged[name])
            start += size
        return staged
