"""The block plan of one training step: anchors, slot inputs, positions, labels and weights.

Shapes: B sequences, S tokens, N anchors, K slots per block (slot 0 is the anchor itself).

A sequence may be several documents packed one behind the other. `document_start` [B, S] then gives for every token
the index of the first token of its document; None stands for one document per sequence. Positions count from the
document's start, and nothing of one document is an input or a label of another.
"""

from dataclasses import dataclass

import torch

from dflash.blocks.anchors import Generators, sample_anchors


def decay_weights(block_size: int, gamma: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Weight of each slot, [K]: 0 for the anchor, exp(-(k - 1) / gamma) for k >= 1 (arXiv 2602.06036)."""
    slots = torch.arange(block_size, device=device, dtype=torch.float32)
    return torch.where(slots > 0, torch.exp(-(slots - 1) / gamma), 0.0)


@dataclass(frozen=True)
class BlockPlan:
    """Everything a step needs to know about its blocks, apart from the hidden states."""

    anchors: torch.Tensor  # [B, N] int64
    keep: torch.Tensor  # [B, N] bool; False for slots that found no anchor
    labels: torch.Tensor  # [B, N, K] int64; the token at anchor + k (0 outside the anchor's document)
    weights: torch.Tensor  # [B, N, K] float32; decay x supervised x in the anchor's document x keep
    starts: torch.Tensor  # [B, N] int64; where the anchor's document begins, 0 where nothing is packed
    sequence_length: int  # S

    @property
    def block_size(self) -> int:
        return self.labels.shape[-1]

    @property
    def num_anchors(self) -> int:
        return self.anchors.shape[1]

    @property
    def slot_positions(self) -> torch.Tensor:
        """Text position of every slot, [B, N*K]: anchor + k, counted from the start of the document."""
        slots = torch.arange(self.block_size, device=self.anchors.device)
        return ((self.anchors - self.starts)[..., None] + slots).flatten(1)

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
    generator: Generators = None,
    document_start: torch.Tensor | None = None,
) -> BlockPlan:
    """Sample anchors for `input_ids` [B, S] and lay out their blocks. `sample_anchors` explains `generator`."""
    anchors, keep = sample_anchors(loss_mask, num_anchors, generator, document_start)
    return lay_out(
        input_ids, loss_mask, anchors, keep, block_size=block_size, gamma=gamma, document_start=document_start
    )


def lay_out(
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    anchors: torch.Tensor,
    keep: torch.Tensor,
    *,
    block_size: int,
    gamma: float,
    document_start: torch.Tensor | None = None,
) -> BlockPlan:
    """The plan for given anchors [B, N] and keep mask [B, N]."""
    batch, length = input_ids.shape
    slots = torch.arange(block_size, device=input_ids.device)
    positions = anchors[..., None] + slots  # [B, N, K]
    inside = (positions < length) & keep[..., None]
    flat = positions.clamp(max=length - 1).flatten(1)
    starts = torch.zeros_like(anchors)
    if document_start is not None:
        starts = document_start.gather(1, anchors).masked_fill(~keep, 0)
        inside &= document_start.gather(1, flat).view_as(positions) == starts[..., None]
    labels = input_ids.gather(1, flat).view_as(positions)
    supervised = loss_mask.gather(1, flat).view_as(positions) & inside
    weights = supervised * decay_weights(block_size, gamma, input_ids.device)
    return BlockPlan(anchors, keep, labels.masked_fill(~inside, 0), weights, starts, length)
