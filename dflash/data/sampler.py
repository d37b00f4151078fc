"""The order of training samples: a seeded shuffle per epoch, addressed by position, so that resuming is arithmetic."""

import torch


class ShuffledSampler:
    """`sampler[i]` is the index of the i-th training sample, for any i >= 0; epochs follow one another."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self._size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(self._size, generator=generator).tolist()
            self._epoch = epoch
        return self._order[offset]
