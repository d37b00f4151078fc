"""How fast a run trains, and how much of that time it waited for data."""

import time

from dflash.features.prefetch import Prefetcher


class SpeedWindow:
    """Speed since the last record: tokens of all ranks, and the share of time that this one waited for data."""

    def __init__(self, micro_batches: Prefetcher) -> None:
        self._micro_batches = micro_batches
        self._tokens, self._seconds = 0, 0.0
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

    def close(self) -> tuple[float, float]:
        """Tokens per second, and the share of the time spent waiting; begins anew."""
        waited = self._micro_batches.wait_seconds
        result = self._tokens / self._seconds, (waited - self._waited) / self._seconds
        self._tokens, self._seconds, self._waited = 0, 0.0, waited
        return result
