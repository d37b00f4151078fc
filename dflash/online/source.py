"""Features from servers elsewhere: asked for well before they are needed, used in the trainer's own order."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from dflash.data.rows import Row
from dflash.features.assembly import assemble
from dflash.online.fetcher import READERS, Fetched, Fetcher, FetchSettings, Layout, Ticket
from dflash.online.servers import ServerList
from dflash.online.statistics import OnlineStatistics, ServerStatistics
from dflash.online.store import MooncakeStore

T = TypeVar("T")
# Documents asked for ahead, per request in flight. More than one, so that servers have work while the oldest document,
# which the trainer needs next, still keeps it waiting.
_AHEAD = 2


class OnlineFeatures:
    """A `FeatureSource` that has every document captured by one of several servers and reads it from the store.

    Rows that `ahead` announced are on their way when they are asked for; any others (for validation, say) are asked for
    on the spot. Nothing depends on the order in which answers come. May be used from several threads.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        store: MooncakeStore,
        layout: Layout,
        settings: FetchSettings,
        *,
        gpus: Mapping[str, int] | None = None,
    ) -> None:
        """`store` belongs to the source from now on. `gpus`: how many a server runs on, by its address, where known.

        Raises:
            UserError: a server's address is no address.
        """
        self._store, self._ahead = store, _AHEAD * settings.in_flight
        self._fetcher = Fetcher(ServerList(addresses), store, layout, settings)
        self._announced: dict[int, deque[_Announcement]] = defaultdict(deque)  # by the row's identity
        self._announced_documents = 0
        self._lock = threading.Lock()
        self._wait_seconds = 0.0
        self._gpus = {address.rstrip("/"): count for address, count in (gpus or {}).items()}
        self._window = self._progress()  # as it was at the previous statistics

    def ahead(self, items: Iterable[T], rows_of: Callable[[T], Sequence[Row]]) -> Iterator[T]:
        """The same items in the same order, the rows of the coming ones being fetched meanwhile.

        At least one item is looked ahead, and as many as it takes to keep the servers busy.
        """
        items = iter(items)
        coming: deque[tuple[T, list[_Announcement]]] = deque()
        current: list[_Announcement] = []
        try:
            while True:
                while len(coming) < 2 or self._announced_documents < self._ahead:
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    coming.append((item, [self._announce(row) for row in rows_of(item)]))
                if not coming:
                    return
                item, current = coming.popleft()
                yield item
        finally:  # the consumer may have stopped early
            self._withdraw([*current, *(one for _, announced in coming for one in announced)])

    def __call__(self, rows: Sequence[Row], *, length: int | None = None) -> torch.Tensor:
        """[B, S, n*E] on the CPU, page-locked where there is CUDA; zeros on padding, S the longest row or `length`.

        Raises:
            UserError: a server refused a document, or none delivered it for too long.
            RuntimeError: the source was closed.
        """
        documents = self._arriving([ticket for row in rows for ticket in self._tickets(row)])
        try:
            return assemble(rows, documents, length, pin_memory=torch.cuda.is_available())
        finally:
            documents.close()

    def statistics(self) -> OnlineStatistics:
        """What is going on. The window of the rates is the time since the previous call."""
        fetcher, counts, before = self._fetcher, self._fetcher.counts, self._window
        self._window = now = self._progress()
        seconds = max(now.time - before.time, 1e-9)
        servers = tuple(
            ServerStatistics(
                address=server.address,
                in_flight=server.in_flight,
                documents=server.answered,
                tokens=server.tokens,
                failures=server.failures,
                resting=server.rests_until > now.time,
                tokens_per_s=(new.tokens - old.tokens) / seconds,
                busy=(new.busy_seconds - old.busy_seconds) / seconds,
                requests=(new.request_seconds - old.request_seconds) / seconds,
                gpus=self._gpus.get(server.address),
            )
            for server, old, new in zip(fetcher.servers.servers, before.servers, now.servers, strict=True)
        )
        in_flight = sum(server.in_flight for server in servers)
        with self._lock:
            announced = [ticket for waiting in self._announced.values() for one in waiting for ticket in one.tickets]
        usage = fetcher.store_usage
        return OnlineStatistics(
            in_flight=in_flight,
            in_flight_limit=fetcher.in_flight_limit,
            queued=max(0, fetcher.waiting - in_flight),
            ready=sum(ticket.result.done() for ticket in announced),
            documents=counts.documents,
            tokens=counts.tokens,
            bytes=counts.bytes,
            retries=counts.retries,
            store_full=counts.store_full,
            wait_seconds=now.wait_seconds,
            read_seconds=now.read_seconds,
            seconds=seconds,
            tokens_per_s=(now.tokens - before.tokens) / seconds,
            bytes_per_s=(now.bytes - before.bytes) / seconds,
            # A wait counts where it ends, so one that began in the window before may exceed this one.
            waited=min(1.0, (now.wait_seconds - before.wait_seconds) / seconds),
            reading=(now.read_seconds - before.read_seconds) / (seconds * READERS),
            store_used_bytes=usage and usage.used_bytes,
            store_capacity_bytes=usage and usage.capacity_bytes,
            last_trouble=fetcher.last_trouble,
            servers=servers,
        )

    def close(self) -> None:
        """End all requests and threads, remove what was in flight from the store and leave it. May be called twice.

        A call that waits for documents in another thread ends with RuntimeError.
        """
        self._fetcher.close()
        self._store.close()

    def _progress(self) -> "_Progress":
        counts, now = self._fetcher.counts, time.monotonic()
        servers = (_ServerProgress(s.tokens, *s.load(now)) for s in self._fetcher.servers.servers)
        return _Progress(now, counts.tokens, counts.bytes, self._wait_seconds, counts.read_seconds, tuple(servers))

    def _announce(self, row: Row) -> "_Announcement":
        announcement = _Announcement(row, self._ask(row))
        with self._lock:
            self._announced[id(row)].append(announcement)
            self._announced_documents += len(announcement.tickets)
        return announcement

    def _withdraw(self, announcements: Iterable["_Announcement"]) -> None:
        for announcement in announcements:
            with self._lock:
                waiting = self._announced.get(id(announcement.row), ())
                if announcement not in waiting:
                    continue  # its documents were taken
                self._forget(announcement)
            for ticket in announcement.tickets:
                self._fetcher.abandon(ticket)

    def _tickets(self, row: Row) -> list[Ticket]:
        """Those of the earliest announcement of this row, else new ones."""
        with self._lock:
            waiting = self._announced.get(id(row))
            if waiting:
                announcement = waiting[0]
                self._forget(announcement)
                return announcement.tickets
        return self._ask(row)

    def _forget(self, announcement: "_Announcement") -> None:
        """Take it off the books; the lock is held."""
        key = id(announcement.row)
        self._announced[key].remove(announcement)
        if not self._announced[key]:
            del self._announced[key]
        self._announced_documents -= len(announcement.tickets)

    def _ask(self, row: Row) -> list[Ticket]:
        return [self._fetcher.submit(id_, tokens) for id_, tokens in zip(row.ids, row.documents, strict=True)]

    def _arriving(self, tickets: Iterable[Ticket]) -> Iterator[torch.Tensor]:
        """The features [s, n*E] of each ticket in order, valid until the next one is asked for."""
        waiting = deque(tickets)
        try:
            while waiting:
                fetched = self._wait(waiting[0])
                waiting.popleft()
                try:
                    yield fetched.features
                finally:
                    self._fetcher.give_back(fetched)
        finally:
            for ticket in waiting:
                self._fetcher.abandon(ticket)

    def _wait(self, ticket: Ticket) -> Fetched:
        started = time.perf_counter()
        try:
            return ticket.result.result()
        finally:
            with self._lock:
                self._wait_seconds += time.perf_counter() - started


@dataclass(eq=False)
class _Announcement:
    """A row whose documents were asked for ahead. Holds the row, so that its identity stays its own."""

    row: Row
    tickets: list[Ticket]


@dataclass(frozen=True)
class _ServerProgress:
    """A server's totals at some time."""

    tokens: int
    busy_seconds: float
    request_seconds: float


@dataclass(frozen=True)
class _Progress:
    """Totals at some time (by the monotonic clock), from two of which rates are made."""

    time: float
    tokens: int
    bytes: int
    wait_seconds: float
    read_seconds: float
    servers: tuple[_ServerProgress, ...]
