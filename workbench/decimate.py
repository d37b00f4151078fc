"""Fewer points for a curve, such that no peak is lost: per bucket of steps the mean, least and largest value."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Thinned:
    """A curve of at most so many points; where nothing was left out, `low` and `high` are None."""

    x: np.ndarray
    y: np.ndarray  # mean of the bucket
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def thin(x: np.ndarray, y: np.ndarray, points: int, span: tuple[float, float] | None = None) -> Thinned:
    """At most `points` points of a curve inside `span` of x, with one neighbour on each side: lines reach the edge.

    Args:
        x: increasing, finite. y: finite, as long as x.
    """
    if span is not None:
        first, behind = np.searchsorted(x, span[0], "left"), np.searchsorted(x, span[1], "right")
        first, behind = max(0, first - 1), min(len(x), behind + 1)
        x, y = x[first:behind], y[first:behind]
    if len(x) <= points:
        return Thinned(x, y)
    # Buckets of equally many points: dense and sparse parts keep their shape.
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return Thinned(
        np.add.reduceat(x, edges) / counts,
        np.add.reduceat(y, edges) / counts,
        np.minimum.reduceat(y, edges),
        np.maximum.reduceat(y, edges),
    )
