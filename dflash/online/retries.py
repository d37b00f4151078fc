"""Asking again: after a pause that doubles, until patience is over."""

import asyncio
import random
import time

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 8.0  # seconds
_JITTER = random.Random()  # its own, so that seeded runs stay as they are


class Retries:
    """The tries of one request, from its first failure on."""

    def __init__(self, patience: float) -> None:
        """`patience` in seconds."""
        self._patience, self._pause = patience, _FIRST_PAUSE
        self._first_failure: float | None = None

    def failed(self) -> bool:
        """Note a failure; returns whether patience is over, counted from the first one."""
        now = time.monotonic()
        self._first_failure = self._first_failure or now
        return now - self._first_failure >= self._patience

    async def pause(self) -> None:
        """Wait before the next try, each time longer."""
        await asyncio.sleep(self._pause * _JITTER.uniform(0.5, 1.0))
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
