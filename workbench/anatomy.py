"""One conversation taken through the real training pipeline, laid out for the Anatomy page.

Shapes: S tokens of text, N anchors, K slots per block. Everything here is one sequence (B = 1).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dflash.blocks.anchors import candidate_mask
from dflash.blocks.mask import TileSummary, explain, mask_predicate, summarise_tiles
from dflash.blocks.plan import BlockPlan, plan_blocks
from dflash.data.conversations import Conversation
from dflash.data.template import Rendered, render
from dflash.decoding.pieces import token_pieces
from dflash.errors import UserError
from dflash.model.config import choose_mask_token
from dflash.target import TargetModel

TILE = 128
MAX_TOKENS = 2048
# How much text around the anchor the cell view shows.
_BEFORE, _AFTER = 10, 5


@dataclass(frozen=True)
class AnatomySettings:
    """What the page's controls say. `window` None is full attention; `gamma` is the decay constant in slots."""

    num_anchors: int = 32
    block_size: int = 8
    gamma: float = 4.0
    seed: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_anchors <= 512:
            raise UserError(f"Number of anchors {self.num_anchors} must lie between 1 and 512.")
        if not 2 <= self.block_size <= 32:
            raise UserError(f"Block size {self.block_size} must lie between 2 and 32.")
        if self.gamma <= 0:
            raise UserError(f"Decay gamma {self.gamma} must be above 0.")
        if self.window is not None and self.window < 1:
            raise UserError(f"Sliding window {self.window} must be at least 1 token, or 0 for none.")


@dataclass(frozen=True)
class Anatomy:
    """A rendered conversation with its block plan."""

    rendered: Rendered
    pieces: list[str]
    plan: BlockPlan
    settings: AnatomySettings
    mask_token_id: int
    tokenizer: Any

    @cached_property
    def anchors(self) -> list[int]:
        """Positions of the anchors that were kept, ascending: the blocks 0, 1, 2 ..."""
        return self.plan.anchors[0][self.plan.keep[0]].tolist()

    @property
    def mask_token(self) -> str:
        """The mask token's text, or its number where it lies behind the tokenizer's vocabulary."""
        return self.tokenizer.decode([self.mask_token_id], skip_special_tokens=False) or f"id {self.mask_token_id}"

    @cached_property
    def candidates(self) -> int:
        """Positions that could have been an anchor."""
        return int(candidate_mask(torch.tensor([self.rendered.loss_mask])).sum())

    @cached_property
    def tiles(self) -> TileSummary:
        return summarise_tiles(self.plan, window=self.settings.window, tile=TILE)

    def check_block(self, block: int) -> int:
        """The block's number, refused when there is no such block."""
        if not 0 <= block < self.plan.num_anchors:
            raise UserError(f"Block {block} does not exist: choose one from 0 to {self.plan.num_anchors - 1}.")
        return block


def dissect(target: TargetModel, conversation: Conversation, settings: AnatomySettings) -> Anatomy:
    """Render, mask, sample anchors and lay out blocks, exactly as training does.

    Raises:
        UserError: the conversation cannot be rendered or teaches nothing.
    """
    rendered = render(conversation, target.tokenizer, max_length=min(MAX_TOKENS, target.max_length))
    if not any(rendered.loss_mask):
        raise UserError("This conversation has no assistant message within the length limit, so nothing can be learned.")
    plan = plan_blocks(
        torch.tensor([rendered.input_ids]),
        torch.tensor([rendered.loss_mask]),
        block_size=settings.block_size,
        num_anchors=settings.num_anchors,
        gamma=settings.gamma,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    pieces = token_pieces(target.tokenizer, rendered.input_ids)
    return Anatomy(rendered, pieces, plan, settings, choose_mask_token(target), target.tokenizer)


def slot_table(anatomy: Anatomy, block: int) -> list[dict[str, Any]]:
    """One row per slot of a block: position, input, label, decay weight and whether it carries loss."""
    plan, size = anatomy.plan, anatomy.plan.block_size
    anchor = int(plan.anchors[0, block])
    keep = bool(plan.keep[0, block])
    inputs = plan.slot_inputs(torch.tensor([anatomy.rendered.input_ids]), anatomy.mask_token_id)[0].view(-1, size)[block]
    rows = []
    for slot in range(size):
        position = anchor + slot
        inside = keep and position < plan.sequence_length
        rows.append(
            {
                "slot": slot,
                "position": position,
                "input": anatomy.mask_token if int(inputs[slot]) == anatomy.mask_token_id else anatomy.pieces[anchor],
                "label": anatomy.pieces[position] if inside else None,
                "weight": float(plan.weights[0, block, slot]),
                "keep": keep,
                "reason": _why_weight(anatomy, position, slot, keep),
            }
        )
    return rows


def _why_weight(anatomy: Anatomy, position: int, slot: int, keep: bool) -> str:
    if not keep:
        return "dropped block: no anchor was left for it"
    if slot == 0:
        return "the anchor itself: given, not predicted"
    if position >= anatomy.plan.sequence_length:
        return "behind the end of the text"
    if not anatomy.rendered.loss_mask[position]:
        return "not the assistant's token"
    return f"exp(-({slot} - 1) / {anatomy.settings.gamma:g})"


@dataclass(frozen=True)
class CellView:
    """A window of the mask: the rows of one block against the keys around it."""

    visible: list[list[bool]]
    words: list[list[str]]
    row_names: list[str]
    column_names: list[str]
    context_columns: int


def cell_view(anatomy: Anatomy, block: int) -> CellView:
    """The rows of `block` against the context around its anchor and the slots of its neighbours."""
    plan, window = anatomy.plan, anatomy.settings.window
    size, length = plan.block_size, plan.sequence_length
    anchor = int(plan.anchors[0, block])
    context = list(range(max(0, anchor - _BEFORE), min(length, anchor + _AFTER)))
    neighbours = [other for other in (block - 1, block, block + 1) if 0 <= other < plan.num_anchors]
    slots = [length + other * size + slot for other in neighbours for slot in range(size)]
    keys, queries = context + slots, [block * size + slot for slot in range(size)]
    predicate = mask_predicate(plan, window)
    seen = predicate(0, None, torch.tensor(queries)[:, None], torch.tensor(keys)[None, :])
    names = [f"{shown(anatomy.pieces[key])} {key}" for key in context]
    names += [f"b{other} · {slot}" for other in neighbours for slot in range(size)]
    return CellView(
        visible=seen.tolist(),
        words=[[explain(plan, 0, query, key, window) for key in keys] for query in queries],
        row_names=[f"slot {slot}" for slot in range(size)],
        column_names=names,
        context_columns=len(context),
    )


def shown(piece: str, limit: int = 12) -> str:
    """A token's text with its white space made visible, cut to `limit` characters."""
    text = piece.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def token_payload(anatomy: Anatomy, block: int) -> dict[str, Any]:
    """What the token strip draws: every token with its place in the loss mask, the anchors, and the chosen block."""
    blocks = {anchor: number for number, anchor in enumerate(anatomy.anchors)}
    anchor = anatomy.anchors[block] if block < len(anatomy.anchors) else None
    return {
        "tokens": [
            {"text": piece, "taught": taught, "anchor": blocks.get(position)}
            for position, (piece, taught) in enumerate(zip(anatomy.pieces, anatomy.rendered.loss_mask, strict=True))
        ],
        "block": block,
        "span": None if anchor is None else [anchor, anchor + anatomy.plan.block_size],
        "supervised": anatomy.rendered.supervised,
        "candidates": anatomy.candidates,
        "kept": len(anatomy.anchors),
        "slots": slot_table(anatomy, block),
        "blocks": anatomy.plan.num_anchors,
        "mask_token": anatomy.mask_token,
    }


def summary(anatomy: Anatomy, block: int) -> dict[str, Any]:
    """The page's numbers as JSON, for the API."""
    tiles = anatomy.tiles
    return {
        "tokens": len(anatomy.rendered.input_ids),
        "supervised": anatomy.rendered.supervised,
        "anchor_candidates": anatomy.candidates,
        "anchors": anatomy.anchors,
        "block_size": anatomy.plan.block_size,
        "block": block,
        "slots": slot_table(anatomy, block),
        "tiles": {
            "size": TILE,
            "full": tiles.count(2),
            "partial": tiles.count(1),
            "empty": tiles.count(0),
            "skipped": tiles.skipped,
        },
    }
