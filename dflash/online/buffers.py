"""Registered host memory that is used again and again: registering it anew for every document would cost more than
the copy."""

import threading
from collections import defaultdict
from typing import Protocol

import torch

_SMALLEST = 1 << 16


class Memory(Protocol):
    """Where registered memory comes from: `dflash.online.store.MooncakeStore`."""

    def allocate(self, size: int) -> torch.Tensor: ...


class BufferPool:
    """Lends buffers of at least the wanted size. As much memory stays allocated as was ever lent at once.

    Sizes are powers of two, so that documents of any length find a buffer that was used before. May be used from
    several threads.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._lock = threading.Lock()
        self.allocated_bytes = 0
        self.lent = 0

    def take(self, size: int) -> torch.Tensor:
        """[>= size] uint8, to be given back."""
        rounded = max(_SMALLEST, 1 << (size - 1).bit_length())
        with self._lock:
            self.lent += 1
            if self._free[rounded]:
                return self._free[rounded].pop()
            self.allocated_bytes += rounded
        try:
            return self._memory.allocate(rounded)
        except BaseException:
            with self._lock:
                self.lent -= 1
                self.allocated_bytes -= rounded
            raise

    def give_back(self, buffer: torch.Tensor) -> None:
        """Make a buffer that `take` lent free for others."""
        with self._lock:
            self.lent -= 1
            self._free[buffer.nbytes].append(buffer)
