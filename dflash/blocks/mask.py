"""Who may see whom: one predicate, and its dense and FlexAttention forms (the split form is in `attention.py`).

Key axis: the S context tokens first, then the N*K draft slots. Query axis: the N*K draft slots.
A slot sees the context of its own document strictly before its anchor (the anchor's own feature does not exist yet
when decoding) and every slot of its own block. In a layer with a sliding window of W tokens, the context must also lie
within W - 1 tokens of the slot's position, and the block is causal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dflash.blocks.plan import BlockPlan


def sees_context(start, anchor, slot, context_position, window: int | None):
    """Whether a slot sees a context token; tensors or numbers, broadcast together. `start`: of its document."""
    visible = (start <= context_position) & (context_position < anchor)
    if window is not None:
        visible = visible & (context_position >= anchor + slot - (window - 1))
    return visible


def sees_slot(block, slot, other_block, other_slot, window: int | None):
    """Whether a slot sees another slot; tensors or numbers, broadcast together."""
    visible = block == other_block
    if window is not None:
        visible = visible & (other_slot <= slot)
    return visible


def mask_predicate(plan: BlockPlan, window: int | None = None) -> Callable:
    """`visible(b, h, q, kv) -> bool` in FlexAttention's signature; the head index is not used."""
    length, block_size = plan.sequence_length, plan.block_size
    starts, anchors, keep = plan.starts, plan.anchors, plan.keep
    last_slot = plan.num_anchors * block_size - 1

    def visible(b, h, q, kv):
        # FlexAttention evaluates the predicate on indices rounded up to whole tiles, hence the clamps.
        in_range = (q <= last_slot) & (kv <= length + last_slot)
        q = q.clamp(max=last_slot)
        draft_kv = (kv - length).clamp(min=0, max=last_slot)
        block, slot = q // block_size, q % block_size
        context = (kv < length) & sees_context(starts[b, block], anchors[b, block], slot, kv, window)
        own = (kv >= length) & sees_slot(block, slot, draft_kv // block_size, draft_kv % block_size, window)
        return keep[b, block] & (context | own) & in_range

    return visible


def dense_mask(plan: BlockPlan, window: int | None = None) -> torch.Tensor:
    """The mask as booleans, [B, N*K, S + N*K]: the slow, obvious form."""
    device = plan.anchors.device
    slots = plan.num_anchors * plan.block_size
    b = torch.arange(plan.anchors.shape[0], device=device)[:, None, None]
    q = torch.arange(slots, device=device)[None, :, None]
    kv = torch.arange(plan.sequence_length + slots, device=device)[None, None, :]
    return mask_predicate(plan, window)(b, None, q, kv)


def flex_block_mask(plan: BlockPlan, window: int | None = None):
    """The mask as a FlexAttention `BlockMask` for kernels that skip empty tiles."""
    from torch.nn.attention.flex_attention import create_block_mask

    slots = plan.num_anchors * plan.block_size
    return create_block_mask(
        mask_predicate(plan, window),
        B=plan.anchors.shape[0],
        H=None,
        Q_LEN=slots,
        KV_LEN=plan.sequence_length + slots,
        device=plan.anchors.device,
    )


@dataclass(frozen=True)
class TileSummary:
    """The mask as FlexAttention's tiles: `state` [Tq, Tkv] int8 with 0 empty, 1 partial, 2 full, and the number of
    visible cells of each, `seen` [Tq, Tkv] int64. Tiles at the edges may be smaller than `tile` x `tile`."""

    state: torch.Tensor
    tile: int
    seen: torch.Tensor

    def count(self, state: int) -> int:
        return int((self.state == state).sum())

    @property
    def skipped(self) -> float:
        """Share of tiles, 0 to 1, that a tile-skipping kernel never touches."""
        return self.count(0) / self.state.numel()


def summarise_tiles(plan: BlockPlan, sequence: int = 0, window: int | None = None, tile: int = 128) -> TileSummary:
    """Count visible cells per tile, one row of tiles at a time so that training-size masks fit in memory."""
    slots = plan.num_anchors * plan.block_size
    keys = plan.sequence_length + slots
    predicate = mask_predicate(plan, window)
    kv = torch.arange(keys, device=plan.anchors.device)[None, :]
    sizes = torch.full((-(-keys // tile),), tile)
    sizes[-1] = keys - tile * (len(sizes) - 1)
    rows, counts = [], []
    for start in range(0, slots, tile):
        q = torch.arange(start, min(start + tile, slots), device=plan.anchors.device)[:, None]
        seen = predicate(sequence, None, q, kv).sum(0).cpu()
        seen = torch.nn.functional.pad(seen, (0, len(sizes) * tile - keys)).view(-1, tile).sum(1)
        rows.append(torch.where(seen == 0, 0, torch.where(seen == len(q) * sizes, 2, 1)))
        counts.append(seen)
    return TileSummary(torch.stack(rows).to(torch.int8), tile, torch.stack(counts))
