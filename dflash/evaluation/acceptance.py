"""How far drafts get: counts, acceptance per position, and tau.

With h[i] steps of i accepted drafts and B slots in a block (B - 1 of them drafted), for k = 1..B-1:

    c_k = sum_{i>=k} h[i] / sum h        cumulative: position k and all before it were accepted
    a_k = c_k / c_{k-1}, c_0 = 1         conditional: position k was accepted, given those before it
    tau = 1 + sum_k c_k                  tokens per target forward, of blocks that nothing cuts

Positions are never multiplied as if they were independent. Counts pool by adding; rates do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dflash.errors import UserError

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Proportion:
    """`hits` out of `total`, with Wilson's 95 % interval, which stays sensible near 0 and 1 and for few trials."""

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        """None when nothing was tried."""
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        if not self.total:
            return None
        rate, weight = self.hits / self.total, _Z95**2 / self.total
        centre = (rate + weight / 2) / (1 + weight)
        half = math.sqrt(rate * (1 - rate) * weight + weight**2 / 4) / (1 + weight)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_dict(self) -> dict[str, Any]:
        interval = list(self.interval) if self.total else None
        return {"hits": self.hits, "total": self.total, "value": self.value, "interval_95": interval}


@dataclass(frozen=True)
class AcceptanceCounts:
    """`histogram[i]` steps had i accepted drafts; its length is the block size."""

    histogram: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "histogram", tuple(self.histogram))
        if len(self.histogram) < 2 or min(self.histogram) < 0:
            raise UserError(f"An acceptance histogram needs two or more counts of 0 or more, not {self.histogram}.")

    def __add__(self, other: "AcceptanceCounts") -> "AcceptanceCounts":
        if len(self.histogram) != len(other.histogram):
            raise UserError(
                f"Counts of block size {len(self.histogram)} and {len(other.histogram)} cannot be pooled: "
                "evaluate both with the same block size."
            )
        return AcceptanceCounts(tuple(a + b for a, b in zip(self.histogram, other.histogram, strict=True)))

    @classmethod
    def pooled(cls, histograms: Sequence[Sequence[int]]) -> "AcceptanceCounts":
        """The sum of one or more histograms of one block size."""
        first, *others = (cls(tuple(h)) for h in histograms)
        return sum(others, first)

    @property
    def steps(self) -> int:
        """Target forwards that verified a block."""
        return sum(self.histogram)

    @property
    def cumulative(self) -> list[Proportion]:
        """c_k for k = 1..B-1: steps that accepted position k, out of all steps."""
        return [Proportion(reached, self.steps) for reached in self._reached()[1:]]

    @property
    def conditional(self) -> list[Proportion]:
        """a_k for k = 1..B-1: steps that accepted position k, out of those that accepted position k - 1."""
        reached = self._reached()
        return [Proportion(after, before) for before, after in zip(reached, reached[1:], strict=False)]

    def shortened(self, block_size: int) -> "AcceptanceCounts":
        """The same steps as if every block had ended after `block_size` slots, the anchor's included.

        An estimate of what that block size would accept: a draft that is given fewer slots may propose otherwise.

        Raises:
            UserError: the size is below 2 or above the counted one.
        """
        if not 2 <= block_size <= len(self.histogram):
            raise UserError(
                f"Block size {block_size} cannot be read off these counts: choose 2 to {len(self.histogram)}."
            )
        kept = self.histogram[: block_size - 1]
        return AcceptanceCounts((*kept, self.steps - sum(kept)))

    @property
    def tau(self) -> float | None:
        """Tokens per target forward if no block were cut by a stop token or a limit; None without steps."""
        return 1 + sum(self._reached()[1:]) / self.steps if self.steps else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: histogram, tau of uncut blocks, both kinds of acceptance with counts and intervals (from 1 on)."""
        return {
            "histogram": list(self.histogram),
            "steps": self.steps,
            "tau_uncut": self.tau,
            "cumulative": _numbered(self.cumulative),
            "conditional": _numbered(self.conditional),
        }

    def _reached(self) -> list[int]:
        """Steps with at least k accepted drafts, k = 0..B-1."""
        return [sum(self.histogram[k:]) for k in range(len(self.histogram))]


def _numbered(proportions: list[Proportion]) -> list[dict[str, Any]]:
    return [{"position": k} | proportion.to_dict() for k, proportion in enumerate(proportions, 1)]
