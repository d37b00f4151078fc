"""Training rows: one conversation each, or several packed behind one another so that little of a row is padding."""

from collections.abc import Sequence
from dataclasses import dataclass

from dflash.data.template import Rendered


@dataclass(frozen=True)
class Row:
    """One training row of S tokens. Its documents are conversations; none of them may see another."""

    ids: tuple[str, ...]  # of the conversations, in the order of `starts`
    input_ids: list[int]  # [S]
    loss_mask: list[bool]  # [S]
    starts: tuple[int, ...] = (0,)  # index of each document's first token, ascending

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(self.loss_mask)

    @property
    def documents(self) -> list[list[int]]:
        """The tokens of each document."""
        ends = (*self.starts[1:], len(self))
        return [self.input_ids[start:end] for start, end in zip(self.starts, ends, strict=True)]


def build_rows(rendered: Sequence[Rendered], *, max_length: int, packing: bool) -> list[Row]:
    """Rows of at most `max_length` tokens: one per conversation, in order, or as few as packing can make them.

    The result depends on nothing but the arguments; shuffling rows is the sampler's business.

    Raises:
        ValueError: a conversation is longer than `max_length` (`load_conversations` cuts them before).
    """
    too_long = next((item for item in rendered if len(item.input_ids) > max_length), None)
    if too_long is not None:
        raise ValueError(f"conversation {too_long.id!r} has {len(too_long.input_ids)} tokens, more than {max_length}")
    if not packing:
        return [_join([item]) for item in rendered]
    return [_join([rendered[i] for i in group]) for group in pack([len(r.input_ids) for r in rendered], max_length)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in groups whose sums stay within `capacity`: best-fit decreasing.

    The longest item comes first, and each goes where it leaves the least room. In the limit that takes at most 11/9 of
    the fewest possible groups; conversations, most of them short, fill theirs almost completely. The items of a group,
    and the groups by their first item, are in the order of `lengths`.
    """
    open_groups: list[list[list[int]]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    rooms = 0  # bit r is set where open_groups[r] is not empty, so that the tightest fit is found without a search
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            group = open_groups[room].pop()
            if not open_groups[room]:
                rooms ^= 1 << room
        else:
            room, group = capacity, []
            groups.append(group)
        group.append(index)
        open_groups[room - length].append(group)
        rooms |= 1 << (room - length)
    return sorted(sorted(group) for group in groups)


def _join(items: list[Rendered]) -> Row:
    if len(items) == 1:
        return Row((items[0].id,), items[0].input_ids, items[0].loss_mask)
    tokens: list[int] = []
    mask: list[bool] = []
    starts = []
    for item in items:
        starts.append(len(tokens))
        tokens += item.input_ids
        mask += item.loss_mask
    return Row(tuple(item.id for item in items), tokens, mask, tuple(starts))
