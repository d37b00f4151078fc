"""A moving average of the weights, which often drafts better than the last step's weights do.

Kept in fp32 and sharded as the weights are. Training goes on with the weights themselves; validation, decoded tau and
the saved draft use the average.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dflash.training.parallel import own_part


class WeightAverage:
    """`tensors` maps parameter names to their averages."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._model = model
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (1-based).

        The decay grows from about 0.2 to its full value, so that the random start is soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages(), self._weights(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again behind it, to the last bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights(), self._averages(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _weights(self) -> list[torch.Tensor]:
        return [own_part(p.detach()) for p in self._model.parameters()]

    def _averages(self) -> list[torch.Tensor]:
        return [own_part(t) for t in self.tensors.values()]

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again at the weights as they are."""
        torch._foreach_copy_(self._averages(), self._weights())
