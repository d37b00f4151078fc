"""Who waits for whom: what a rank's source of online features has done, and what it is doing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerStatistics:
    """One server as seen by one rank."""

    address: str
    in_flight: int  # requests of this rank
    documents: int  # captured since the start
    tokens: int
    failures: int
    resting: bool  # it failed, and is left alone for some seconds


@dataclass(frozen=True)
class OnlineStatistics:
    """Totals since the start, unless another meaning is given."""

    in_flight: int  # now: requests at servers
    queued: int  # now: documents asked for that wait for a server, for another try or for being read
    ready: int  # now: documents that are here and wait for the trainer
    documents: int
    tokens: int
    bytes: int  # moved through the store
    retries: int
    wait_seconds: float  # that the trainer's side waited for documents
    read_seconds: float  # spent reading from the store
    tokens_per_second: float  # of all servers for this rank, since the previous statistics
    last_trouble: str | None  # why a document was asked for again, the last time it happened
    servers: tuple[ServerStatistics, ...]
