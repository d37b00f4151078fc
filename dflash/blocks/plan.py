"""The block plan of one training step: anchors, slot inputs, positions, labels and weights.

Shapes: B sequences, S tokens, N anchors, K slots per block (slot 0 is the anchor itself).
"""

from dataclasses import dataclass

import torch

from dflash.blocks.anchors import sample_anchors


def decay_weights(block_size: int, gamma: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Weight of each slot, [K]: 0 for the anchor, exp(-(k - 1) / gamma) for k >= 1 (arXiv 2602.06036)."""
    slots = torch.arange(block_size, device=device, dtype=torch.float32)
    return torch.where(slots > 0, torch.exp(-(slots - 1) / gamma), 0.0)


@dataclass(frozen=True)
class BlockPlan:
    """Everything a step needs to know about its blocks, apart from the hidden states."""

    anchors: torch.Tensor  # [B, N] int64
    keep: torch.Tensor  # [B, N] bool; False for slots that found no anchor
    labels: torch.Tensor  # [B, N, K] int64; the token at anchor + k (0 where out of bounds)
    weights: torch.Tensor  # [B, N, K] float32; decay x supervised x in bounds x keep
    sequence_length: int  # S

    @property
    def block_size(self) -> int:
        return self.labels.shape[-1]

    @property
    def num_anchors(self) -> int:
        return self.anchors.shape[1]

    @property
    def slot_positions(self) -> torch.Tensor:
        """Text position of every slot, [B, N*K]: anchor + k."""
        slots = torch.arange(self.block_size, device=self.anchors.device)
        return (self.anchors[..., None] + slots).flatten(1)

    def slot_inputs(self, input_ids: torch.Tensor, mask_token_id: int) -> torch.Tensor:
        """Input token of every slot, [B, N*K]: the real token in slot 0, the mask token elsewhere."""
        inputs = torch.full_like(self.labels, mask_token_id)
        inputs[..., 0] = input_ids.gather(1, self.anchors)
        return inputs.flatten(1)


def plan_blocks(
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    block_size: int,
    num_anchors: int,
    gamma: float,
    generator: torch.Generator | None = None,
) -> BlockPlan:
    """Sample anchors for `input_ids` [B, S] and lay out their blocks."""
    anchors, keep = sample_anchors(loss_mask, num_anchors, generator)
    return lay_out(input_ids, loss_mask, anchors, keep, block_size=block_size, gamma=gamma)


def lay_out(
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    anchors: torch.Tensor,
    keep: torch.Tensor,
    *,
    block_size: int,
    gamma: float,
) -> BlockPlan:
    """The plan for given anchors [B, N] and keep mask [B, N]."""
    batch, length = input_ids.shape
    slots = torch.arange(block_size, device=input_ids.device)
    positions = anchors[..., None] + slots  # [B, N, K]
    inside = (positions < length) & keep[..., None]
    flat = positions.clamp(max=length - 1).flatten(1)
    labels = input_ids.gather(1, flat).view_as(positions)
    supervised = loss_mask.gather(1, flat).view_as(positions) & inside
    weights = supervised * decay_weights(block_size, gamma, input_ids.device)
    return BlockPlan(anchors, keep, labels.masked_fill(~inside, 0), weights, length)
