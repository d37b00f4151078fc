"""Why a slot does or does not see a key: the mask rule's parts, told apart, for many cells at once and in words.

Both indices are those of the mask's axes (`mask.py`). Shapes: Q slots, Kv keys.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch

from dflash.blocks.mask import sees_context, sees_slot
from dflash.blocks.plan import BlockPlan


class Reason(IntEnum):
    """What decides about one cell. The first two are visible, all others hidden."""

    BEFORE_ANCHOR = 0
    OWN_BLOCK = 1
    ANCHOR = 2
    FUTURE = 3
    OTHER_DOCUMENT = 4
    OUTSIDE_WINDOW = 5
    OTHER_BLOCK = 6
    LATER_SLOT = 7
    DROPPED = 8

    @property
    def visible(self) -> bool:
        return self <= Reason.OWN_BLOCK


_ME = "Slot {slot} of block {block} (anchor {anchor})"
_BEHIND = "{me} does not see context token {key}: only context strictly before the anchor is visible"
_WORDS = {
    Reason.BEFORE_ANCHOR: "{me} sees context token {key}: it lies strictly before the anchor.",
    Reason.OWN_BLOCK: "{me} sees slot {other_slot}: both are in the same block.",
    Reason.ANCHOR: _BEHIND + ", its feature does not exist yet when decoding.",
    Reason.FUTURE: _BEHIND + ", it lies in the future.",
    Reason.OTHER_DOCUMENT: "{me} does not see context token {key}: it belongs to another document; this one begins at "
    "{start}.",
    Reason.OUTSIDE_WINDOW: "{me} does not see context token {key}: it lies outside the sliding window of {window} "
    "tokens.",
    Reason.OTHER_BLOCK: "{me} does not see slot {other_slot} of block {other_block}: blocks never see one another.",
    Reason.LATER_SLOT: "{me} does not see slot {other_slot}: in a sliding-window layer the block is causal.",
    Reason.DROPPED: "{me} sees nothing: the block was dropped, no anchor was left for it.",
}


def reasons(
    plan: BlockPlan, sequence: int, queries: torch.Tensor, keys: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """The `Reason` of every cell of `queries` [Q] and `keys` [Kv], [Q, Kv] int8."""
    q, key = queries[:, None], keys[None, :]
    block, slot = q // plan.block_size, q % plan.block_size
    anchor, start = plan.anchors[sequence, block], plan.starts[sequence, block]
    other = (key - plan.sequence_length).clamp(min=0)
    other_block, other_slot = other // plan.block_size, other % plan.block_size
    context = key < plan.sequence_length
    # From the weakest to the strongest: what comes later overrides what came before.
    found = torch.full(torch.broadcast_shapes(q.shape, key.shape), Reason.OUTSIDE_WINDOW, dtype=torch.int8)
    for where, reason in (
        (context & sees_context(start, anchor, slot, key, window), Reason.BEFORE_ANCHOR),
        (context & (key < start), Reason.OTHER_DOCUMENT),
        (context & (key > anchor), Reason.FUTURE),
        (context & (key == anchor), Reason.ANCHOR),
        (~context & (block != other_block), Reason.OTHER_BLOCK),
        (~context & (block == other_block), Reason.LATER_SLOT),
        (~context & sees_slot(block, slot, other_block, other_slot, window), Reason.OWN_BLOCK),
        (~plan.keep[sequence, block], Reason.DROPPED),
    ):
        found.masked_fill_(where.expand_as(found), reason)
    return found


def sentences(
    plan: BlockPlan, sequence: int, queries: Sequence[int], keys: Sequence[int], window: int | None = None
) -> list[list[str]]:
    """`explain` for every cell of a window of the mask: one list per query."""
    codes = reasons(plan, sequence, torch.tensor(queries), torch.tensor(keys), window).tolist()
    others = [divmod(max(0, key - plan.sequence_length), plan.block_size) for key in keys]
    rows = []
    for query, row in zip(queries, codes, strict=True):
        block, slot = divmod(query, plan.block_size)
        anchor, start = int(plan.anchors[sequence, block]), int(plan.starts[sequence, block])
        me = _ME.format(slot=slot, block=block, anchor=anchor)
        rows.append(
            [
                _WORDS[Reason(code)].format(
                    me=me, key=key, start=start, window=window, other_block=other_block, other_slot=other_slot
                )
                for code, key, (other_block, other_slot) in zip(row, keys, others, strict=True)
            ]
        )
    return rows


def explain(plan: BlockPlan, sequence: int, query: int, key: int, window: int | None = None) -> str:
    """In words, why slot `query` does or does not see key `key`."""
    return sentences(plan, sequence, [query], [key], window)[0][0]
