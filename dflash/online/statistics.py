"""Who waits for whom: what a rank's source of online features has done, and the record of all ranks in metrics.jsonl.

A window is the time since the statistics before; shares are of it. `pooled` says how the ranks' numbers become one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

_SUMMED = ("in_flight", "in_flight_limit", "queued", "ready", "documents", "tokens", "bytes", "retries", "store_full")
_SUMMED_OF_A_SERVER = ("in_flight", "documents", "tokens", "failures")


@dataclass(frozen=True)
class ServerStatistics:
    """One server as seen by one rank. Totals since the start, unless another meaning is given."""

    address: str
    in_flight: int  # now: requests of this rank
    documents: int  # captured
    tokens: int
    failures: int
    resting: bool  # it failed, and is left alone for some seconds
    tokens_per_s: float  # in the window
    busy: float  # share of the window in which it had a request of this rank
    requests: float  # of this rank at a time, on average over the window
    gpus: int | None = None  # that it runs on, where that is known


@dataclass(frozen=True)
class OnlineStatistics:
    """Totals since the start, unless another meaning is given."""

    in_flight: int  # now: requests at servers
    in_flight_limit: int
    queued: int  # now: documents asked for that wait for a server, for another try or for being read
    ready: int  # now: documents that are here and wait for the trainer
    documents: int
    tokens: int
    bytes: int  # moved through the store
    retries: int
    store_full: int  # captures that failed because the store had no room
    wait_seconds: float  # that the trainer's side waited for documents
    read_seconds: float  # spent reading from the store
    seconds: float  # length of the window
    tokens_per_s: float  # of all servers for this rank, in the window
    bytes_per_s: float  # moved through the store, in the window
    waited: float  # share of the window in which the trainer's side waited for documents
    reading: float  # share of the readers' time in the window that went into reading
    store_used_bytes: int | None  # some seconds ago, by all ranks; None where nobody can tell
    store_capacity_bytes: int | None
    last_trouble: str | None  # why a document was asked for again, the last time it happened
    servers: tuple[ServerStatistics, ...]


@runtime_checkable
class Observed(Protocol):
    """A source of features that knows who waits for whom."""

    def statistics(self) -> OnlineStatistics: ...


def pipeline_record(source: object, gather: Callable[[T], Sequence[T]]) -> dict[str, Any]:
    """`{"online": ...}` for metrics.jsonl, the same on every rank, each of which has to call it.

    Empty for a source that runs no pipeline. `gather` collects one item of every rank (`World.gather`).
    """
    if not isinstance(source, Observed):
        return {}
    return {"online": pooled(gather(source.statistics()))}


def pooled(ranks: Sequence[OnlineStatistics]) -> dict[str, Any]:
    """One record of all ranks, plain values for JSON.

    Counts and rates are sums. `wait_percent` and `read_percent` are means over the ranks, `seconds` is the longest
    window. A server is busy while any rank has a request at it: 1 - (1 - b1)(1 - b2)..., taking ranks as independent.
    """
    seconds = max(rank.seconds for rank in ranks)
    full = [rank for rank in ranks if rank.store_used_bytes is not None]
    return {
        "ranks": len(ranks),
        "seconds": seconds,
        **{name: sum(getattr(rank, name) for rank in ranks) for name in _SUMMED},
        "tokens_per_s": sum(rank.tokens_per_s for rank in ranks),
        "bytes_per_s": sum(rank.bytes_per_s for rank in ranks),
        "wait_percent": _percent(rank.waited for rank in ranks),
        "read_percent": _percent(rank.reading for rank in ranks),
        "store_used_bytes": max((rank.store_used_bytes for rank in full), default=None),
        "store_capacity_bytes": max((rank.store_capacity_bytes for rank in full), default=None),
        "last_trouble": next((rank.last_trouble for rank in ranks if rank.last_trouble), None),
        "servers": [_pooled_server(each) for each in zip(*(rank.servers for rank in ranks), strict=True)],
    }


def _pooled_server(ranks: Sequence[ServerStatistics]) -> dict[str, Any]:
    """One server as all ranks together see it; they list the servers in the same order."""
    return {
        "address": ranks[0].address,
        "gpus": ranks[0].gpus,
        **{name: sum(getattr(rank, name) for rank in ranks) for name in _SUMMED_OF_A_SERVER},
        "resting_ranks": sum(rank.resting for rank in ranks),
        "tokens_per_s": sum(rank.tokens_per_s for rank in ranks),
        "busy_percent": 100 * (1 - math.prod(1 - min(1.0, rank.busy) for rank in ranks)),
        "requests": sum(rank.requests for rank in ranks),
    }


def _percent(shares: Iterable[float]) -> float:
    shares = list(shares)
    return 100 * sum(shares) / len(shares)
