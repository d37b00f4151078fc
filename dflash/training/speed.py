"""How fast a run trains, and how much of that time it waited for data."""

import time
from dataclasses import dataclass
from typing import Any

from dflash.features.prefetch import Prefetcher
from dflash.features.source import FeatureSource
from dflash.online.statistics import pipeline_record
from dflash.training.reporter import peak_memory_gib
from dflash.training.world import World


@dataclass(frozen=True)
class Speed:
    """Averages since the last record."""

    tokens_per_s: float
    seconds_per_batch: float
    waited: float  # share of the time


class SpeedWindow:
    """Speed since the last record: tokens of all ranks, and the share of time that this one waited for data."""

    def __init__(self, micro_batches: Prefetcher) -> None:
        self._micro_batches = micro_batches
        self._tokens, self._batches, self._seconds = 0, 0, 0.0
        self._waited = micro_batches.wait_seconds
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time spent on validation, decoding and saving is not a step's."""
        self._clock = time.perf_counter()

    def add(self, tokens: int) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        self._tokens += tokens
        self._batches += 1

    def close(self) -> Speed:
        """The averages; begins anew."""
        waited = self._micro_batches.wait_seconds
        seconds = self._seconds
        result = Speed(self._tokens / seconds, seconds / self._batches, (waited - self._waited) / seconds)
        self._tokens, self._batches, self._seconds, self._waited = 0, 0, 0.0, waited
        return result


def speed_record(speed: Speed, source: FeatureSource, world: World) -> dict[str, Any]:
    """What metrics.jsonl says of a step's speed, over all ranks, each of which calls it.

    `data_wait_percent` is the ranks' mean, `memory_gib` that of the fullest; `online` is there where the features come
    through a pipeline.
    """
    waits, memory = zip(*world.gather((speed.waited, peak_memory_gib(world.device))), strict=True)
    return {
        "tokens_per_s": speed.tokens_per_s,
        "data_wait_percent": 100 * sum(waits) / len(waits),
        "memory_gib": max(memory),
        **pipeline_record(source, world.gather),
    }
