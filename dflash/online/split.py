"""How many GPUs serve and how many train: every way to divide them, and the tokens per second that each could reach.

    rate(s, t) = min(s * p, t * q, t * l)

s serving and t training GPUs; p tokens/s that a serving one delivers, q that a training one puts through, l that it can
read.
"""

from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Limit = Literal["servers", "trainer", "link"]


@dataclass(frozen=True)
class Capacity:
    """Tokens per second that each part could do if it never waited."""

    server: float  # per serving GPU
    trainer: float  # per training GPU
    link: float | None = None  # per training GPU, on the way from the servers; None where it sets no limit


@dataclass(frozen=True)
class Split:
    """One way to divide the GPUs."""

    serving: int
    training: int
    tokens_per_s: float
    limit: Limit  # what is busy all the time
    server_idle: float  # share of the time
    trainer_idle: float


def split(serving: int, training: int, capacity: Capacity) -> Split:
    """What this division reaches."""
    rates: dict[Limit, float] = {"servers": serving * capacity.server, "trainer": training * capacity.trainer}
    if capacity.link is not None:
        rates["link"] = training * capacity.link
    limit = min(rates, key=rates.__getitem__)
    rate = rates[limit]
    return Split(serving, training, rate, limit, 1 - rate / rates["servers"], 1 - rate / rates["trainer"])


def splits(
    gpus: int, capacity: Capacity, *, server_gpus: int = 1, ranks_fit: Callable[[int], bool] = lambda ranks: True
) -> Iterator[Split]:
    """Every division of at most `gpus` GPUs, by the number that serve: whole servers of `server_gpus` each.

    Of what the servers leave, the most GPUs train that `ranks_fit` lets share a step's rows.
    """
    fitting = [ranks for ranks in range(1, gpus) if ranks_fit(ranks)]
    for serving in range(server_gpus, gpus, server_gpus):
        if fewer := bisect(fitting, gpus - serving):
            yield split(serving, fitting[fewer - 1], capacity)


def best_split(found: list[Split]) -> Split | None:
    """The fastest one; of equals the one that leaves more room on both sides. None if there is none."""

    def spare(one: Split) -> float:
        return min(1 / (1 - one.server_idle), 1 / (1 - one.trainer_idle))

    return max(found, key=lambda one: (one.tokens_per_s, spare(one), -one.serving), default=None)
