"""A key/value cache that grows in place, for decoding and batched generation.

transformers' own `DynamicLayer` concatenates, which copies the whole cache at every step. Here each layer owns a
buffer with spare room: an update writes behind the valid part, and removing rejected tokens only moves a number.

A block of several tokens behind a non-empty cache attends over *whole tiles* of keys, the spare ones masked. Attention
kernels on CPU sum in an order that depends on the number of keys, so without this the same token gets slightly
different logits as first row of one block and as third row of another, and verified text would drift from plain text.

Shapes: keys and values are [batch, kv_heads, length, head_dim].
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer

_FIRST_CAPACITY = 256
# The kernel's own tile of keys. Measured with torch 2.13 on x86: between 192 and 384 keys the matrix library picks its
# blocking by their number, in bf16 as in fp32, so no smaller tile is exact (LOG.md).
_TILE = 512


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in buffers that double when full."""

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._reserve(key_states, value_states, _FIRST_CAPACITY)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append [B, kv_heads, new, head_dim] and return views of everything held, up to a whole tile for a block."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        visible = self._visible(key_states.shape[-2])
        if visible > self._key_buffer.shape[-2]:
            self._reserve(key_states, value_states, max(visible, 2 * self._key_buffer.shape[-2]))
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._show(end)
        return self._key_buffer[:, :, :visible], self._value_buffer[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys the next `update` of this length returns, and their offset."""
        return self._visible(query_length), 0

    def get_seq_length(self) -> int:
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; the number is negative, as everywhere in transformers' cache."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the negative number of tokens to remove, not {tokens_to_remove}")
        if self.is_initialized:
            self._show(max(0, self._length + tokens_to_remove))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.is_initialized:
            self._key_buffer = self._key_buffer[indices]
            self._value_buffer = self._value_buffer[indices]
            self._show(self._length)

    def reset(self) -> None:
        if self.is_initialized:
            self._show(0)

    def _visible(self, new: int) -> int:
        end = self._length + new
        if new == 1 or self._length == 0:  # without a mask there is nothing to hide spare keys behind
            return end
        return -(-end // _TILE) * _TILE

    def _reserve(self, key_states: torch.Tensor, value_states: torch.Tensor, capacity: int) -> None:
        for name, states in (("_key_buffer", key_states), ("_value_buffer", value_states)):
            old = getattr(self, name)
            # Zeros: spare keys are masked, but a masked NaN would still spoil the weighted sum of values.
            new = states.new_zeros(*states.shape[:2], capacity, states.shape[-1])
            if old is not None:
                new[:, :, : self._length] = old[:, :, : self._length]
            setattr(self, name, new)

    def _show(self, length: int) -> None:
        self._length = length
        self.keys = self._key_buffer[:, :, :length]
        self.values = self._value_buffer[:, :, :length]


def growing_cache(num_layers: int) -> Cache:
    """A transformers `Cache` of `num_layers` growing layers, for models with full attention in every layer."""
    return Cache(layers=[GrowingLayer() for _ in range(num_layers)])
