"""Rotary position embedding with the target's parameters: any of transformers' scaled kinds, full or partial."""

import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from dflash.model.config import DFlashConfig


class RotaryEmbedding(Qwen3RotaryEmbedding):
    """Cosines and sines [B, L, R] for positions [B, L]; R <= head_dim is the rotated part of each head."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__(
            Qwen3Config(
                hidden_size=config.hidden_size,
                num_attention_heads=config.num_attention_heads,
                head_dim=config.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                rope_parameters={"rope_type": "default", **config.rope_parameters},
            )
        )

    def _apply(self, fn, recurse: bool = True):
        """Move to another device, never to another dtype: angles from 16-bit frequencies drift with the position."""
        precise = self.inv_freq, self.original_inv_freq
        super()._apply(fn, recurse)
        self.inv_freq, self.original_inv_freq = (kept.to(self.inv_freq.device) for kept in precise)
        return self

    @staticmethod
    def compute_default_rope_parameters(config: Qwen3Config, **_) -> tuple[torch.Tensor, float]:
        """Inverse frequencies of the unscaled kind, which Qwen3 itself only has without partial rotation."""
        rope = config.rope_parameters
        rotated = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotated, 2, dtype=torch.float) / rotated
        return rope["rope_theta"] ** -exponents, 1.0


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first R dimensions of [B, heads, L, D] by angles given as cos, sin [B, L, R]."""
    cos, sin = cos[:, None], sin[:, None]
    width = cos.shape[-1]
    turned, kept = states[..., :width], states[..., width:]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-high, low], dim=-1) * sin
    return torch.cat([turned, kept], dim=-1) if kept.shape[-1] else turned
