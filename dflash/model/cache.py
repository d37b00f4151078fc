"""The draft's context cache: projected keys and values of every accepted token, computed once each."""

import torch

from dflash.cache import GrowingLayer


class DraftCache:
    """Per layer, keys and values [1, kv_heads, length, D] of the context; the block itself is never cached."""

    def __init__(self, num_layers: int) -> None:
        self._layers = [GrowingLayer() for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Context tokens held; the next anchor's position."""
        return self._layers[0].get_seq_length()

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._layers[layer].update(keys, values)

    def get(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        held = self._layers[layer]
        return held.keys, held.values
