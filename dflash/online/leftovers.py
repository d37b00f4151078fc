"""What runs leave in the store of servers that outlive them: one that was killed and never resumed sweeps nothing."""

import time
from collections.abc import Callable

from dflash.online.store import KEY_ROOT, MooncakeStore
from dflash.online.store_errors import StoreError

_LOOK_EVERY = 60.0
# A rank reads an object as soon as its server says that it is there, within seconds. Should one be wanted after all,
# its rank finds it gone and has the document captured again: a mistake costs time, nothing else.
_LEFT_SECONDS = 600.0


class Leftovers:
    """Removes objects that lay in the store for ten minutes; the master knows no ages, so they are noted here."""

    def __init__(self, store: MooncakeStore, clock: Callable[[], float] = time.monotonic) -> None:
        """`store` has to know the master's metrics port: without it nothing is ever found."""
        self._store, self._clock = store, clock
        self._seen: dict[str, float] = {}  # when each key that is there was seen for the first time
        self._looked = clock()

    def tick(self) -> int:
        """To be called every now and then; returns how many objects were removed."""
        now = self._clock()
        if now - self._looked < _LOOK_EVERY:
            return 0
        self._looked = now
        try:
            keys = [key for key in self._store.keys() if key.startswith(f"{KEY_ROOT}/")]
            self._seen = {key: self._seen.get(key, now) for key in keys}
            return self._store.remove([key for key, since in self._seen.items() if now - since >= _LEFT_SECONDS])
        except StoreError:
            return 0  # whether the master lives is for others to watch; what is there is looked at again
