"""Dual-source attention: queries from the draft block, keys and values from the target's context and the block.

Shapes: B sequences, C context tokens, Q draft slots, D head dimension, E hidden size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dflash.blocks.attention import BlockAttention
from dflash.model.config import DFlashConfig
from dflash.model.norm import RMSNorm
from dflash.model.rotary import rotate

Angles = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each [B, L, R]


class DualSourceAttention(nn.Module):
    """One pair of key/value projections serves both sources (arXiv 2602.06036, "dual-source KV")."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def keys_values(self, states: torch.Tensor, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (normed, rotated) and values, [B, kv_heads, L, D], of context or slots [B, L, E]."""
        keys = rotate(self.k_norm(self._heads(self.k_proj(states))), *angles)
        return keys, self._heads(self.v_proj(states))

    def queries(self, states: torch.Tensor, angles: Angles) -> torch.Tensor:
        """Queries [B, heads, Q, D] of the slots [B, Q, E]."""
        return rotate(self.q_norm(self._heads(self.q_proj(states))), *angles)

    def forward(
        self,
        slots: torch.Tensor,
        context: torch.Tensor,
        slot_angles: Angles,
        context_angles: Angles,
        attend: BlockAttention,
    ) -> torch.Tensor:
        """Training: many blocks of one text at once; `attend` knows who sees whom. Returns [B, Q, E]."""
        context_kv = self.keys_values(context, context_angles)
        slot_kv = self.keys_values(slots, slot_angles)
        return self._join(attend(self.queries(slots, slot_angles), *context_kv, *slot_kv))

    def forward_block(
        self, slots: torch.Tensor, angles: Angles, context_keys: torch.Tensor, context_values: torch.Tensor
    ) -> torch.Tensor:
        """Decoding: one block behind cached context keys and values [B, kv_heads, C, D]. Returns [B, Q, E]."""
        slot_keys, slot_values = self.keys_values(slots, angles)
        keys = torch.cat([context_keys, slot_keys], dim=2)
        values = torch.cat([context_values, slot_values], dim=2)
        query = self.queries(slots, angles)
        batch, heads, size, dim = query.shape
        groups = heads // keys.shape[1]
        mask = self._window_mask(size, context_keys.shape[2], query.device)
        if mask is not None:
            mask = mask.repeat(groups, 1)
        # Query heads that share a key head become rows of one small matrix: no key is ever repeated.
        packed = query.reshape(batch, keys.shape[1], groups * size, dim)
        out = F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask)
        return self._join(out.view(batch, heads, size, dim))

    def _window_mask(self, size: int, context: int, device: torch.device) -> torch.Tensor | None:
        """[size, context + size] bool for a sliding-window layer whose block starts right behind its context."""
        if self.window is None:
            return None
        positions = torch.arange(context + size, device=device)
        slots = torch.arange(context, context + size, device=device)[:, None]
        # As in training, the window limits the context only; inside the block the mask is causal.
        return (positions <= slots) & ((positions >= context) | (positions >= slots - (self.window - 1)))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """[B, L, heads * D] -> [B, heads, L, D]"""
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _join(self, states: torch.Tensor) -> torch.Tensor:
        return self.o_proj(states.transpose(1, 2).flatten(2))
