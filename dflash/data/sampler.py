"""The order of training rows: a seeded shuffle per epoch, addressed by position, so that resuming is arithmetic."""

from collections.abc import Sequence

import torch

_POOL = 32  # steps whose rows are sorted by length together: enough for similar lengths, few enough to stay random


class ShuffledSampler:
    """`sampler[i]` is the index of the i-th training row, for any i >= 0; epochs follow one another.

    Every epoch holds every row exactly once. Nothing depends on how many processes share the rows.

    Args:
        size: number of rows.
        seed: fixes every epoch's order.
        lengths: tokens of every row; given, the rows of one step (and neighbours within it all the more) have similar
            lengths, so that little is padded and no rank waits long for another. None: a plain shuffle.
        rows_per_step: rows of one optimizer step, counted from position 0; used with `lengths` only.
    """

    def __init__(
        self, size: int, seed: int, *, lengths: Sequence[int] | None = None, rows_per_step: int | None = None
    ) -> None:
        if lengths is not None and (len(lengths) != size or not rows_per_step):
            raise ValueError(f"grouping needs rows_per_step and one length for each of the {size} rows")
        self._size = size
        self._seed = seed
        self._lengths = lengths
        self._rows_per_step = rows_per_step
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self._size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(self._size, generator=generator).tolist()
            if self._lengths is not None:
                self._order = self._grouped(self._order, epoch, generator)
            self._epoch = epoch
        return self._order[offset]

    def _grouped(self, shuffled: list[int], epoch: int, generator: torch.Generator) -> list[int]:
        """`shuffled` with rows of similar length in each of the epoch's whole steps, and these in random order.

        Steps run across the ends of epochs: what completes the last epoch's step and what the next epoch has to
        complete stay as shuffled.
        """
        step = self._rows_per_step
        head = min(-(epoch * self._size) % step, self._size)
        end = self._size - (self._size - head) % step
        groups = []
        for first in range(head, end, _POOL * step):
            pool = sorted(shuffled[first : min(first + _POOL * step, end)], key=lambda row: self._lengths[row])
            groups += [pool[i : i + step] for i in range(0, len(pool), step)]
        order = torch.randperm(len(groups), generator=generator).tolist()
        return shuffled[:head] + [row for g in order for row in groups[g]] + shuffled[end:]
