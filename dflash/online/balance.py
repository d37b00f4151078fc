"""Who waits for whom, in words: from the records of a run's pipeline to the side that holds it up, and what would help.

The trainer's waiting and the servers' being busy tell the side. What each side could do comes from the same records:
a server's tokens/s over the share of time in which it had a request, and the trainer's over the share in which it did
not wait. A server that had little to do could do more than that, since it prefills several prompts together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dflash.online.split import Capacity, Split, best_split, split, splits

Bottleneck = Literal["servers", "trainer", "link", "requests", "host", "store", "faults", "balanced", "unknown"]

_LAST = 20  # records that are looked at: how it goes now, not how it began
_WAITS = 0.05  # share of its time from which on the trainer counts as waiting
_BUSY = 0.9  # share of its time from which on a server counts as busy
_READING = 0.8  # share of the readers' time
_FULL = 0.9  # share of the store
_FAULTS = 0.05  # documents asked for again, or captures that found no room, per document
_NEEDED = frozenset(
    "ranks seconds documents tokens retries store_full tokens_per_s bytes_per_s wait_percent read_percent "
    "in_flight_limit store_used_bytes store_capacity_bytes last_trouble".split()
)
_OF_A_SERVER = frozenset(("address", "gpus", "busy_percent", "requests", "resting_ranks"))
_WORTH = 1.02  # a split that promises less is not suggested


@dataclass(frozen=True)
class Load:
    """Averages over the records that were looked at; shares are between 0 and 1."""

    records: int
    seconds: float
    waits: float  # share of its time that the trainer waited for data
    source_waits: float  # share in which a rank's source waited for documents
    busy: float  # share of its time that a server had something to do, mean over the servers that answer
    requests: float  # at servers, on average
    request_limit: int
    reading: float  # share of the readers' time
    tokens_per_s: float  # that the trainer put through
    served_per_s: float  # tokens that the servers delivered
    bytes_per_s: float  # moved through the store
    documents: int
    retries: int
    store_full: int  # captures that found no room
    store_use: float | None  # largest share
    servers: int
    silent: tuple[str, ...]  # servers that no rank could reach at the end
    serving: int | None  # GPUs of the servers that answer, where known
    training: int  # ranks
    last_trouble: str | None

    @property
    def capacity(self) -> Capacity | None:
        """Tokens/s per serving GPU (per server, where GPUs are not known) and per rank; None while nothing was done."""
        units = self.serving or self.servers - len(self.silent)
        if not (self.busy and units and self.served_per_s and self.tokens_per_s):
            return None
        trains = max(0.001, 1 - self.waits)  # a trainer that always waits still did something
        return Capacity(self.served_per_s / self.busy / units, self.tokens_per_s / trains / self.training)


@dataclass(frozen=True)
class Verdict:
    """What holds the run up. `suggested_split` is there if another division of the same GPUs is clearly faster."""

    words: str
    bottleneck: Bottleneck
    suggested_split: Split | None = None
    load: Load | None = None


def verdict(
    records: Sequence[Mapping[str, Any]], *, ranks_fit: Callable[[int], bool] = lambda ranks: True
) -> Verdict:
    """Judge a run by the lines of its metrics.jsonl, of which only those of an online pipeline count.

    `ranks_fit` says which numbers of ranks can share the rows of a step, so that no other split is suggested.
    """
    load = load_of(records)
    if load is None:
        return Verdict("There is no record of the pipeline yet, so nothing can be said.", "unknown")
    side = _side(load)
    better = _better(load, ranks_fit) if side in ("servers", "trainer") else None
    words = [_WORDS[side](load), *_split_words(load, side, better)]
    if load.silent:
        words.append(f"Of {load.servers} servers, {len(load.silent)} cannot be reached: {', '.join(load.silent)}.")
    if side != "store" and (load.store_use or 0) >= _FULL:
        words.append(f"The store was {_percent(load.store_use)} full: larger segments would leave it some room.")
    if load.records == 1:
        words.append("This rests on one record only, which may hold the start's delays.")
    return Verdict(" ".join(words), side, better, load)


def load_of(records: Sequence[Mapping[str, Any]]) -> Load | None:
    """The averages over the last records of a pipeline; None if there are none.

    The first record after each start is left out where there are others: servers were warming up.
    """
    lines = [record for record in records if _is_whole(record)]
    if not lines:
        return None
    steady = [pair for pair in zip(lines, lines[1:]) if _follows(pair[1]["online"], pair[0]["online"])][-_LAST:]
    chosen = [line for _, line in steady] or lines[-1:]
    last, seconds = chosen[-1]["online"], sum(line["online"]["seconds"] for line in chosen)

    def mean(value: Callable[[Mapping[str, Any]], float]) -> float:
        return sum(value(line) * line["online"]["seconds"] for line in chosen) / max(seconds, 1e-9)

    def since(name: str) -> int:
        """How much a total has grown, over all starts that were looked at."""
        if not steady:
            return last[name]
        return sum(line["online"][name] - before["online"][name] for before, line in steady)

    silent = tuple(server["address"] for server in last["servers"] if server["resting_ranks"] == last["ranks"])
    alive = [server for server in last["servers"] if server["address"] not in silent]
    return Load(
        records=len(chosen),
        seconds=seconds,
        waits=min(0.999, mean(lambda line: line["data_wait_percent"]) / 100),
        source_waits=mean(lambda line: line["online"]["wait_percent"]) / 100,
        busy=mean(lambda line: _busy(line["online"], silent)),
        requests=mean(lambda line: sum(server["requests"] for server in line["online"]["servers"])),
        request_limit=last["in_flight_limit"],
        reading=mean(lambda line: line["online"]["read_percent"]) / 100,
        tokens_per_s=mean(lambda line: line["tokens_per_s"]),
        served_per_s=mean(lambda line: line["online"]["tokens_per_s"]),
        bytes_per_s=mean(lambda line: line["online"]["bytes_per_s"]),
        documents=since("documents"),
        retries=since("retries"),
        store_full=since("store_full"),
        store_use=max((use for line in chosen if (use := _store_use(line["online"])) is not None), default=None),
        servers=len(last["servers"]),
        silent=silent,
        serving=sum(server["gpus"] for server in alive) if alive and all(server["gpus"] for server in alive) else None,
        training=last["ranks"],
        last_trouble=last["last_trouble"],
    )


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a line tells of a pipeline all that is needed; those of other versions may not."""
    online = line.get("online")
    if line.get("kind") != "train" or not isinstance(online, Mapping) or not isinstance(online.get("servers"), list):
        return False
    told = all(isinstance(line.get(name), (int, float)) for name in ("tokens_per_s", "data_wait_percent"))
    return told and _NEEDED <= online.keys() and all(map(_is_whole_server, online["servers"]))


def _is_whole_server(server: Any) -> bool:
    return isinstance(server, Mapping) and _OF_A_SERVER <= server.keys()


def _follows(record: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether both are of one start of the trainer: its totals begin at 0."""
    return record["documents"] >= before["documents"] and record["tokens"] >= before["tokens"]


def _busy(record: Mapping[str, Any], silent: Sequence[str]) -> float:
    shares = [server["busy_percent"] for server in record["servers"] if server["address"] not in silent]
    return sum(shares) / len(shares) / 100 if shares else 0.0


def _store_use(record: Mapping[str, Any]) -> float | None:
    capacity = record["store_capacity_bytes"]
    return record["store_used_bytes"] / capacity if capacity else None


def _side(load: Load) -> Bottleneck:
    if load.waits < _WAITS:
        return "balanced" if load.busy >= _BUSY else "trainer"
    many = _FAULTS * max(1, load.documents)
    if load.store_full > many:
        return "store"
    if load.retries > many:
        return "faults"
    if load.busy >= _BUSY:
        return "servers"
    if load.reading >= _READING:
        return "link"
    return "host" if load.source_waits < load.waits / 2 else "requests"


def _better(load: Load, ranks_fit: Callable[[int], bool]) -> Split | None:
    """A clearly faster division of the GPUs that are in use; servers keep their size."""
    if load.serving is None or load.capacity is None:
        return None
    size = load.serving // max(1, load.servers - len(load.silent))
    gpus = load.serving + load.training
    best = best_split(list(splits(gpus, load.capacity, server_gpus=size, ranks_fit=ranks_fit)))
    now = split(load.serving, load.training, load.capacity)
    return best if best and best.tokens_per_s >= _WORTH * now.tokens_per_s else None


def _split_words(load: Load, side: Bottleneck, better: Split | None) -> list[str]:
    if side not in ("servers", "trainer", "balanced") or load.capacity is None:
        return []
    units = load.serving or load.servers - len(load.silent)
    serve, train = units * load.capacity.server, load.training * load.capacity.trainer
    if better is not None:
        gain = better.tokens_per_s / split(load.serving, load.training, load.capacity).tokens_per_s
        return [
            f"Of the {load.serving + load.training} GPUs, {better.serving} serving and {better.training} training "
            f"would balance it (now {load.serving} and {load.training}): about {gain:.2f} times the tokens/s."
        ]
    if load.serving is not None:
        return [f"No other split of the {load.serving + load.training} GPUs would be clearly faster."]
    if side == "servers":
        return [f"About {train / serve:.1f} times as many servers would keep the trainer busy."]
    if side == "trainer":
        return [f"The servers could feed about {serve / train:.1f} times as fast a trainer."]
    return []


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_WORDS = {
    "balanced": lambda load: (
        f"Nobody waits for long: the servers are busy {_percent(load.busy)} of the time, and the trainer waits "
        f"{_percent(load.waits)}."
    ),
    "trainer": lambda load: (
        f"The servers wait for the trainer: they have work {_percent(load.busy)} of the time, while the trainer waits "
        f"only {_percent(load.waits)}."
    ),
    "servers": lambda load: (
        f"The trainer waits for the servers: {_percent(load.waits)} of its time, while they are busy "
        f"{_percent(load.busy)}."
    ),
    "link": lambda load: (
        f"The trainer waits {_percent(load.waits)} of its time for the way from the store: reading takes "
        f"{_percent(load.reading)} of its readers' time, while the servers are busy only {_percent(load.busy)}. A "
        "faster link (RDMA) or fewer captured layers would help."
    ),
    "requests": lambda load: (
        f"The trainer waits {_percent(load.waits)} of its time though the servers are busy only {_percent(load.busy)}: "
        f"too little is asked ahead ({load.requests:.1f} requests at a time, at most {load.request_limit}). Raise "
        "online.in_flight."
    ),
    "host": lambda load: (
        f"The trainer waits {_percent(load.waits)} of its time, but not for servers: documents are there, and "
        "preparing them takes so long. Raise features.prefetch, or give each rank more CPU cores."
    ),
    "store": lambda load: (
        f"The store is full: {load.store_full} captures found no room, and the trainer waits {_percent(load.waits)} of "
        "its time. Give the servers larger segments, or lower online.in_flight."
    ),
    "faults": lambda load: (
        f"Faults hold the run up: {load.retries} documents had to be asked for again beside {load.documents} that "
        f"came, and the trainer waits {_percent(load.waits)} of its time. The last trouble: {load.last_trouble}."
    ),
}
