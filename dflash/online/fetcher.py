"""Documents to features: asked for over HTTP, read from the store, asked for again whatever gets lost on the way.

One thread with an event loop holds all requests; the store, whose calls block, is read by a few others.
"""

import asyncio
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dflash.errors import UserError
from dflash.online.buffers import BufferPool
from dflash.online.capture_record import CaptureFailed, CaptureRecord
from dflash.online.client import EngineClient, Refused, ServerFault
from dflash.online.retries import Retries
from dflash.online.servers import Server, ServerList
from dflash.online.store import Usage
from dflash.online.store_errors import MasterDown, StoreError, StoreFull

READERS = 3  # threads that read from the store, one of which looks after it now and then
_LATE_SECONDS = 30.0  # a server may still write for a request that was given up; its objects are swept after so long
_LOOK_EVERY = 5.0
_DRAIN_SECONDS = 2.0  # how long closing waits for answers, so that their objects can be removed
_CLOSED = "the source of features is closed"


class Store(Protocol):
    """What is needed of `dflash.online.store.MooncakeStore`."""

    def allocate(self, size: int) -> torch.Tensor: ...
    def get(self, into: Mapping[str, torch.Tensor]) -> None: ...
    def remove(self, keys: Sequence[str]) -> int: ...
    def sweep(self, prefix: str) -> int: ...
    def usage(self) -> Usage | None: ...


@dataclass(frozen=True)
class Layout:
    """What the features of a token have to look like."""

    layer_ids: tuple[int, ...]
    width: int  # numbers per token: layers x hidden size
    dtype: torch.dtype


@dataclass(frozen=True)
class FetchSettings:
    """How documents are fetched."""

    prefix: str  # of all request ids and keys: `key_prefix` of the generation and the rank, nobody else's
    in_flight: int = 16  # requests at a time, each of which may hold a document's features in the store
    answer_seconds: float = 300.0  # for one answer, the server's queue included
    patience: float = 600.0  # seconds for which a document may fail again and again: a server's restart takes minutes


@dataclass(frozen=True)
class Fetched:
    """Features [s, n*E] of one document in registered memory, to be given back."""

    features: torch.Tensor
    buffer: torch.Tensor


@dataclass(eq=False)
class Ticket:
    """A document on its way. `result` becomes a `Fetched`, or the reason why there is none."""

    id: str  # of the conversation
    tokens: Sequence[int]
    result: "Future[Fetched]" = field(default_factory=Future)
    task: "asyncio.Task | None" = None


@dataclass
class Counts:
    """What happened since the start."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    retries: int = 0
    store_full: int = 0  # captures that failed because the store had no room
    read_seconds: float = 0.0  # spent in reading from the store


class Fetcher:
    """Fetches documents in the order in which they were submitted; they arrive in any order. To be closed."""

    def __init__(self, servers: ServerList, store: Store, layout: Layout, settings: FetchSettings) -> None:
        self.servers, self.counts = servers, Counts()
        self.last_trouble: str | None = None  # why a document had to be asked for again
        self.store_usage: Usage | None = None  # some seconds ago; None where the store does not tell
        self._store, self._layout, self._settings = store, layout, settings
        self._buffers = BufferPool(store)
        self._tickets: set[Ticket] = set()  # not settled yet; changed by the loop's thread only
        self._given_up: deque[tuple[float, str]] = deque()  # (time, request id): their objects may come late
        self._lock = threading.Lock()
        self._closing = self._ended = False
        self._reason: Exception = RuntimeError(_CLOSED)  # why there will be no more results
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="feature-reader")
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._slots = asyncio.Semaphore(settings.in_flight)
        self._asking: set[asyncio.Task] = set()  # tasks with a request at a server
        self._client = EngineClient(settings.in_flight, settings.answer_seconds)
        # A daemon, so that a consumer that forgets to close cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="feature-fetcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Documents that were submitted and are not there yet."""
        return len(self._tickets)

    @property
    def in_flight_limit(self) -> int:
        """Requests at a time."""
        return self._settings.in_flight

    @property
    def buffers(self) -> BufferPool:
        """The registered memory in which features arrive."""
        return self._buffers

    def submit(self, id_: str, tokens: Sequence[int]) -> Ticket:
        """Ask for a document of conversation `id_`.

        Raises:
            RuntimeError: the fetcher is closed.
        """
        ticket = Ticket(id_, tokens)
        self._call(lambda: self._begin(ticket))
        return ticket

    def give_back(self, fetched: Fetched) -> None:
        """The features were used; their memory serves another document from now on."""
        self._buffers.give_back(fetched.buffer)

    def abandon(self, ticket: Ticket) -> None:
        """Nobody will take this ticket's result."""
        ticket.result.add_done_callback(self._give_back_unused)
        with suppress(RuntimeError):  # closing gives up everything
            self._call(lambda: ticket.task.cancel())

    def close(self) -> None:
        """End all threads; whatever was in flight is removed from the store. May be called twice.

        What a server that takes more than some seconds writes afterwards is left to whoever keeps the store: the
        launcher sweeps it at the run's end, `dflash serve-target` removes what nobody reads for ten minutes.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
            if not self._ended:
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._readers.shutdown()
        with suppress(MasterDown):  # everything stored is lost with it
            self._store.sweep(self._settings.prefix)

    def _call(self, action: Callable[[], object]) -> None:
        """Have the loop's thread do something."""
        with self._lock:
            if self._closing or self._ended:
                raise RuntimeError(_CLOSED) from self._reason
            self._loop.call_soon_threadsafe(action)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # a fault of ours: whoever waits has to know
            self._reason = error
        with self._lock:
            self._ended = True
        self._loop.run_until_complete(self._cancel_all())
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    async def _serve(self) -> None:
        while not self._stop.is_set():
            await self._loop.run_in_executor(self._readers, self._look_after_store)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LOOK_EVERY)
        for ticket in self._tickets:
            if ticket.task not in self._asking:
                ticket.task.cancel()
        if self._asking:  # with its answer a server says that its objects are written, and so can be swept
            await asyncio.wait(self._asking, timeout=_DRAIN_SECONDS)

    async def _cancel_all(self) -> None:
        """End every task; nobody waits for ever."""
        await asyncio.sleep(0)  # what was submitted in the last moment becomes a task
        tasks = [ticket.task for ticket in self._tickets]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the callbacks that settle their tickets

    def _begin(self, ticket: Ticket) -> None:
        self._tickets.add(ticket)
        ticket.task = self._loop.create_task(self._settle(ticket))
        ticket.task.add_done_callback(lambda task: self._end(ticket, task))

    async def _settle(self, ticket: Ticket) -> Fetched:
        async with self._slots:
            return await self._fetch(ticket)

    def _end(self, ticket: Ticket, task: asyncio.Task) -> None:
        self._tickets.discard(ticket)
        if task.cancelled():
            ticket.result.set_exception(self._reason)
        elif task.exception() is not None:
            ticket.result.set_exception(task.exception())
        else:
            ticket.result.set_result(task.result())

    async def _fetch(self, ticket: Ticket) -> Fetched:
        """Try until it works, or until patience is at its end."""
        what = f"The features of conversation {ticket.id!r} ({len(ticket.tokens)} tokens)"
        retries, avoid = Retries(self._settings.patience), None
        while True:
            server = await self._awake_server(avoid)
            try:
                return await self._attempt(ticket, server)
            except Refused as error:
                raise UserError(
                    f"{what} were refused; {error}: shorten it (data.max_length), leave it out or raise the server's "
                    "limits."
                ) from error
            except (ServerFault, CaptureFailed, StoreError) as error:
                self.last_trouble = str(error)
                self.counts.store_full += _tells_full_store(error)
                if retries.failed():
                    raise UserError(
                        f"{what} could not be had in {self._settings.patience:g} s; at last {error}: see the servers' "
                        "logs."
                    ) from error
            self.counts.retries += 1
            avoid = server
            await retries.pause()

    async def _awake_server(self, avoid: Server | None) -> Server:
        while (server := self.servers.choose(avoid)) is None:
            await asyncio.sleep(self.servers.seconds_until_awake() + 0.01)
        return server

    async def _attempt(self, ticket: Ticket, server: Server) -> Fetched:
        """One request to one server, and the reading of what it wrote."""
        request_id = self._settings.prefix + uuid.uuid4().hex
        task = asyncio.current_task()
        try:
            self._asking.add(task)
            try:
                with self.servers.asking(server):
                    record = await self._client.capture(server.address, ticket.tokens, request_id)
            finally:
                self._asking.discard(task)
            if self._stop.is_set():
                raise asyncio.CancelledError  # the answer was all that closing waited for
            self._check(record, ticket, server)
            fetched = await self._reading(record)
        except BaseException as error:
            self._given_up.append((time.monotonic(), request_id))
            if isinstance(error, (ServerFault, CaptureFailed, StoreError)):
                self.servers.failed(server, rest=isinstance(error, ServerFault))
            raise
        self.servers.succeeded(server, len(ticket.tokens))
        self.counts.documents += 1
        self.counts.tokens += len(ticket.tokens)
        self.counts.bytes += fetched.features.nbytes
        return fetched

    def _check(self, record: CaptureRecord, ticket: Ticket, server: Server) -> None:
        """Refuse what would train the draft on something else than the run's features."""
        layout, stored = self._layout, record.features
        found = (tuple(record.layer_ids), stored.shape[1], stored.dtype)
        wanted = (layout.layer_ids, layout.width, str(layout.dtype).removeprefix("torch."))
        if found != wanted:
            names = ("layers", "numbers per token", "dtype")
            name, got, want = next(all_ for all_ in zip(names, found, wanted, strict=True) if all_[1] != all_[2])
            raise UserError(
                f"Server {server.address} captures {name} {got}, this run needs {want}: start it with the run's "
                "target, layer ids and dtype."
            )
        size = stored.shape[0] * stored.shape[1] * layout.dtype.itemsize
        if (stored.shape[0], stored.bytes) != (len(ticket.tokens), size):
            raise CaptureFailed(
                f"{server.address} captured {stored.shape[0]} tokens in {stored.bytes} bytes, "
                f"{len(ticket.tokens)} were sent"
            )

    async def _reading(self, record: CaptureRecord) -> Fetched:
        reading = self._loop.run_in_executor(self._readers, self._read, record)
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:  # the thread goes on: what it brings has to be given back
            reading.add_done_callback(self._give_back_unused)
            raise

    def _read(self, record: CaptureRecord) -> Fetched:
        """Move the features from the store into a buffer of ours; in a reader's thread."""
        stored, started = record.features, time.perf_counter()
        buffer = self._buffers.take(stored.bytes)
        features = buffer[: stored.bytes].view(self._layout.dtype).view(stored.shape)
        try:
            self._store.get({stored.key: features})
        except BaseException:
            self._buffers.give_back(buffer)
            raise
        try:
            self._store.remove([tensor.key for tensor in record.tensors])
        except StoreError as error:  # the features are here all the same
            self.last_trouble = str(error)
            self._given_up.append((time.monotonic(), stored.key.rpartition("/")[0]))
        self.counts.read_seconds += time.perf_counter() - started
        return Fetched(features, buffer)

    def _look_after_store(self) -> None:
        """In a reader's thread, since it may block."""
        self._sweep_late()
        try:
            self.store_usage = self._store.usage()
        except StoreError:
            self.store_usage = None  # nobody knows; whether the store works is for reads to find out

    def _sweep_late(self) -> None:
        """Remove what servers wrote for requests that were given up; in a reader's thread."""
        while self._given_up and time.monotonic() - self._given_up[0][0] > _LATE_SECONDS:
            _, request_id = self._given_up.popleft()
            try:
                self._store.sweep(f"{request_id}/")
            except MasterDown:
                pass  # everything stored is lost with it
            except StoreError as error:
                self.last_trouble = str(error)  # the sweep at the end has another try

    def _give_back_unused(self, result: "Future[Fetched] | asyncio.Future[Fetched]") -> None:
        if not result.cancelled() and result.exception() is None:
            self.give_back(result.result())


def _tells_full_store(error: Exception) -> bool:
    """A server's record of a failure begins with the name of the error that its writer met."""
    return isinstance(error, CaptureFailed) and StoreFull.__name__ in str(error)
