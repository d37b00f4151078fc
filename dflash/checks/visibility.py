"""The visibility rule, stated a second time for the leak check.

On purpose not the mask's own predicate: a mask that is wrong cannot vouch for itself. The rule: a block sees the
context of its document strictly before its anchor, and its own slots; with a sliding window of W tokens slot k sees the
context from anchor + k - (W - 1) on, and no slot behind itself.

Behind several layers a slot has also seen whatever the slots it sees had seen.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A block in a batch: its row, its place among the row's blocks, and two indices in the row."""

    row: int
    index: int
    anchor: int
    document_start: int
    kept: bool = True


def must_see_context(block: Block, slot: int, position: int, window: int | None, single_layer: bool) -> bool:
    """Whether a slot has to react to the feature at `position` of its own row."""
    first = block.document_start
    if window is not None:
        reach = slot if single_layer else 0  # slot 0 sees furthest back, and later slots see slot 0
        first = max(first, block.anchor + reach - (window - 1))
    return block.kept and first <= position < block.anchor


def must_see_slot(block: Block, slot: int, other: Block, other_slot: int, window: int | None) -> bool:
    """Whether a slot has to react to the input of another slot."""
    if block != other:
        return False
    if not block.kept:  # nothing is attended to, but a slot always passes on its own input
        return slot == other_slot
    return window is None or other_slot <= slot


def must_see_token(block: Block, slot: int, row: int, position: int) -> bool:
    """Whether a slot has to react to a token, which the target mixes into the features of all later ones."""
    if not block.kept:
        return slot == 0 and (row, position) == (block.row, block.anchor)
    return row == block.row and block.document_start <= position <= block.anchor


def why_hidden(block: Block, row: int, position: int, window: int | None) -> str:
    """In words, why a block must not see a position of the text."""
    if not block.kept:
        return "the block was dropped"
    if row != block.row:
        return "it lies in another row"
    if position == block.anchor:
        return "it is the anchor's own, which does not exist yet when decoding"
    if position > block.anchor:
        return "it lies in the future"
    if position < block.document_start:
        return "it belongs to another document"
    return f"it lies outside the sliding window of {window} tokens"
