"""A training row taken through the real pipeline, laid out for the Anatomy page.

Shapes: S tokens of text, N anchors, K slots per block. Everything here is one sequence (B = 1).
"""

from bisect import bisect_right
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from dflash.blocks.anchors import candidate_mask
from dflash.blocks.mask import TileSummary, mask_predicate, summarise_tiles
from dflash.blocks.plan import BlockPlan, plan_blocks
from dflash.blocks.reasons import explain, sentences
from dflash.data.batch import collate
from dflash.data.conversations import Conversation
from dflash.data.rows import Row, build_rows
from dflash.data.template import render
from dflash.decoding.pieces import token_pieces
from dflash.errors import UserError
from dflash.model.config import choose_mask_token
from dflash.target import TargetModel

TILE = 128
MAX_TOKENS = 2048
# How much text around the anchor the cell view shows.
_BEFORE, _AFTER = 10, 5
_LIMITS = {"num_anchors": ("Number of anchors", 1, 512), "block_size": ("Block size", 2, 32)}


@dataclass(frozen=True)
class AnatomySettings:
    """What the page's controls say. `window` None is full attention; `gamma` is the decay constant in slots."""

    num_anchors: int = 32
    block_size: int = 8
    gamma: float = 4.0
    seed: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        for name, (words, low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{words} {value} must lie between {low} and {high}.")
        if not 0 < self.gamma < float("inf"):
            raise UserError(f"Decay gamma {self.gamma} must be above 0.")
        if self.window is not None and self.window < 1:
            raise UserError(f"Sliding window {self.window} must be at least 1 token, or 0 for none.")
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"Seed {self.seed} must be 0 or a larger whole number.")


@dataclass(frozen=True)
class Anatomy:
    """A training row with its block plan. The plan may be longer than the row: what follows is padding."""

    row: Row
    pieces: list[str]
    plan: BlockPlan
    settings: AnatomySettings
    candidates: int  # positions that could have been an anchor
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
    def tiles(self) -> TileSummary:
        return summarise_tiles(self.plan, window=self.settings.window, tile=TILE)

    @property
    def slots(self) -> int:
        """Rows of the mask, N*K."""
        return self.plan.num_anchors * self.plan.block_size

    @property
    def keys(self) -> int:
        """Columns of the mask, S + N*K."""
        return self.plan.sequence_length + self.slots

    def document(self, position: int) -> int:
        """Which document of the row a token belongs to, from 0."""
        return bisect_right(self.row.starts, position) - 1

    def check_block(self, block: int) -> int:
        """The block's number, refused when there is no such block."""
        if not 0 <= block < self.plan.num_anchors:
            raise UserError(f"Block {block} does not exist: choose one from 0 to {self.plan.num_anchors - 1}.")
        return block

    def check_tile(self, row: int, column: int) -> tuple[int, int]:
        """A tile's place, refused when there is no such tile."""
        last_row, last_column = (self.slots - 1) // TILE, (self.keys - 1) // TILE
        if not (0 <= row <= last_row and 0 <= column <= last_column):
            raise UserError(
                f"Tile {row}, {column} does not exist: choose a row from 0 to {last_row} and a column from 0 to "
                f"{last_column}."
            )
        return row, column


def dissect(target: TargetModel, conversation: Conversation, settings: AnatomySettings) -> Anatomy:
    """Render one conversation, mask, sample anchors and lay out blocks, exactly as training does.

    Raises:
        UserError: the conversation cannot be rendered or teaches nothing.
    """
    limit = min(MAX_TOKENS, target.max_length)
    rendered = render(conversation, target.tokenizer, max_length=limit)
    (row,) = build_rows([rendered], max_length=limit, packing=False)
    return dissect_row(target, row, settings)


def dissect_row(target: TargetModel, row: Row, settings: AnatomySettings, length: int | None = None) -> Anatomy:
    """Sample anchors on a training row and lay out its blocks, exactly as training does.

    `length` pads the row, as it would be beside a longer one in its batch; None leaves it as it is.

    Raises:
        UserError: the row teaches nothing.
    """
    if not row.supervised:
        raise UserError(
            "This conversation has no assistant message within the length limit, so nothing can be learned."
        )
    batch = collate([row], multiple=length or 1)
    plan = plan_blocks(
        batch.input_ids,
        batch.loss_mask,
        block_size=settings.block_size,
        num_anchors=settings.num_anchors,
        gamma=settings.gamma,
        # A generator of the row's own, as in training: padding and other rows change none of its anchors.
        generator=[torch.Generator().manual_seed(settings.seed)],
        document_start=batch.document_start,
    )
    candidates = int(candidate_mask(batch.loss_mask, batch.document_start).sum())
    pieces = token_pieces(target.tokenizer, row.input_ids)
    return Anatomy(row, pieces, plan, settings, candidates, choose_mask_token(target), target.tokenizer)


def slot_table(anatomy: Anatomy, block: int) -> list[dict[str, Any]]:
    """One row per slot of a block: position, input, label, decay weight and whether it carries loss."""
    plan, size = anatomy.plan, anatomy.plan.block_size
    anchor = int(plan.anchors[0, block])
    keep = bool(plan.keep[0, block])
    inputs = plan.slot_inputs(torch.tensor([anatomy.row.input_ids]), anatomy.mask_token_id)[0].view(-1, size)[block]
    rows = []
    for slot in range(size):
        position = anchor + slot
        inside = keep and position < len(anatomy.row) and anatomy.document(position) == anatomy.document(anchor)
        rows.append(
            {
                "slot": slot,
                "position": position,
                "input": anatomy.mask_token if int(inputs[slot]) == anatomy.mask_token_id else anatomy.pieces[anchor],
                "label": anatomy.pieces[position] if inside else None,
                "weight": float(plan.weights[0, block, slot]),
                "keep": keep,
                "reason": _why_weight(anatomy, anchor, position, slot, keep),
            }
        )
    return rows


def _why_weight(anatomy: Anatomy, anchor: int, position: int, slot: int, keep: bool) -> str:
    if not keep:
        return "dropped block: no anchor was left for it"
    if slot == 0:
        return "the anchor itself: given, not predicted"
    if position >= len(anatomy.row):
        return "behind the end of the text"
    if anatomy.document(position) != anatomy.document(anchor):
        return "another document: its tokens are no labels here"
    if not anatomy.row.loss_mask[position]:
        return "not the assistant's token"
    return f"exp(-({slot} - 1) / {anatomy.settings.gamma:g})"


@dataclass(frozen=True)
class CellView:
    """A window of the mask: `queries` against `keys`, both as numbers on the mask's axes."""

    visible: list[list[bool]]
    words: list[list[str]]
    row_names: list[str]
    column_names: list[str]
    context_columns: int
    title: str


def cell_view(anatomy: Anatomy, block: int) -> CellView:
    """The rows of `block` against the context around its anchor and the slots of its neighbours."""
    plan = anatomy.plan
    size, length = plan.block_size, plan.sequence_length
    anchor = int(plan.anchors[0, block])
    context = list(range(max(0, anchor - _BEFORE), min(length, anchor + _AFTER)))
    neighbours = [other for other in (block - 1, block, block + 1) if 0 <= other < plan.num_anchors]
    slots = [length + other * size + slot for other in neighbours for slot in range(size)]
    queries = [block * size + slot for slot in range(size)]
    return _cells(anatomy, queries, context + slots, "What may each slot of this block see?")


def tile_view(anatomy: Anatomy, row: int, column: int) -> CellView:
    """All cells of one tile.

    Raises:
        UserError: there is no such tile.
    """
    anatomy.check_tile(row, column)
    queries = list(range(row * TILE, min(anatomy.slots, (row + 1) * TILE)))
    keys = list(range(column * TILE, min(anatomy.keys, (column + 1) * TILE)))
    return _cells(anatomy, queries, keys, f"What is visible in tile {row}, {column}?")


def explain_cell(anatomy: Anatomy, query: int, key: int) -> dict[str, Any]:
    """One cell of the mask: whether it is visible, and why in words.

    Raises:
        UserError: there is no such cell.
    """
    if not (0 <= query < anatomy.slots and 0 <= key < anatomy.keys):
        raise UserError(
            f"Cell {query}, {key} does not exist: choose a slot from 0 to {anatomy.slots - 1} and a key from 0 to "
            f"{anatomy.keys - 1}."
        )
    window = anatomy.settings.window
    seen = mask_predicate(anatomy.plan, window)(0, None, torch.tensor(query), torch.tensor(key))
    return {"visible": bool(seen), "why": explain(anatomy.plan, 0, query, key, window)}


def _cells(anatomy: Anatomy, queries: list[int], keys: list[int], title: str) -> CellView:
    plan, window = anatomy.plan, anatomy.settings.window
    size, length = plan.block_size, plan.sequence_length
    seen = mask_predicate(plan, window)(0, None, torch.tensor(queries)[:, None], torch.tensor(keys)[None, :])
    blocks = {query // size for query in queries}
    one = len(blocks) == 1
    return CellView(
        visible=seen.tolist(),
        words=sentences(plan, 0, queries, keys, window),
        row_names=[f"slot {query % size}" if one else f"b{query // size} · {query % size}" for query in queries],
        column_names=[_key_name(anatomy, key) for key in keys],
        context_columns=sum(key < length for key in keys),
        title=title,
    )


def _key_name(anatomy: Anatomy, key: int) -> str:
    length, size = anatomy.plan.sequence_length, anatomy.plan.block_size
    if key >= length:
        return f"b{(key - length) // size} · {(key - length) % size}"
    return f"{shown(anatomy.pieces[key])} {key}" if key < len(anatomy.pieces) else f"padding {key}"


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
            for position, (piece, taught) in enumerate(zip(anatomy.pieces, anatomy.row.loss_mask, strict=True))
        ],
        "starts": list(anatomy.row.starts),
        "documents": list(anatomy.row.ids),
        "padding": anatomy.plan.sequence_length - len(anatomy.row),
        "block": block,
        "span": None if anchor is None else [anchor, anchor + anatomy.plan.block_size],
        "supervised": anatomy.row.supervised,
        "candidates": anatomy.candidates,
        "kept": len(anatomy.anchors),
        "slots": slot_table(anatomy, block),
        "blocks": anatomy.plan.num_anchors,
        "mask_token": anatomy.mask_token,
    }


def summary(anatomy: Anatomy, block: int) -> dict[str, Any]:
    """The page's numbers as JSON, for the API."""
    documents = zip(anatomy.row.ids, anatomy.row.starts, strict=True)
    return {
        "settings": asdict(anatomy.settings),
        "tokens": len(anatomy.row),
        "padding": anatomy.plan.sequence_length - len(anatomy.row),
        "documents": [{"id": name, "start": start} for name, start in documents],
        "loss_mask": [int(taught) for taught in anatomy.row.loss_mask],
        "supervised": anatomy.row.supervised,
        "anchor_candidates": anatomy.candidates,
        "anchors": anatomy.anchors,
        "block_size": anatomy.plan.block_size,
        "block": block,
        "slots": slot_table(anatomy, block),
        "tiles": tile_counts(anatomy),
    }


def tile_counts(anatomy: Anatomy) -> dict[str, Any]:
    """The mask in numbers: cells, tiles of every kind, the share of tiles skipped, and what the others do in vain."""
    tiles = anatomy.tiles
    computed = sum(
        min(TILE, anatomy.slots - TILE * row) * min(TILE, anatomy.keys - TILE * column)
        for row, column in tiles.state.nonzero().tolist()
    )
    visible = int(tiles.seen.sum())
    return {
        "size": TILE,
        "slots": anatomy.slots,
        "keys": anatomy.keys,
        "cells": anatomy.slots * anatomy.keys,
        "tiles": tiles.state.numel(),
        "full": tiles.count(2),
        "partial": tiles.count(1),
        "empty": tiles.count(0),
        "skipped": tiles.skipped,
        "visible_cells": visible,
        "computed_cells": computed,
        "visible_share_of_computed": visible / computed if computed else 0.0,
    }
