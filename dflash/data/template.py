"""Conversations to tokens: the target's chat template and a loss mask that is exact at token level.

A conversation is rendered as text, the assistant's spans are found in it (`answers.py`), the text is tokenised once
with character offsets, and a token is supervised if it lies wholly inside a span.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

from dflash.data.answers import AnswerFinder, Span
from dflash.data.conversations import Conversation
from dflash.data.messages import Rejected

_BATCH = 256  # conversations tokenised at a time, which fast tokenizers do in parallel


@dataclass(frozen=True)
class Rendered:
    """One conversation as the target sees it; both lists have S entries."""

    id: str
    input_ids: list[int]
    loss_mask: list[bool]  # True on tokens the assistant produced, its end-of-turn token included
    truncated: bool = False  # its end was cut off at the greatest length

    @property
    def supervised(self) -> int:
        return sum(self.loss_mask)


def render(
    conversation: Conversation, tokenizer, max_length: int | None = None, *, last_turn_only: bool = False
) -> Rendered:
    """Apply the chat template and mark the assistant's tokens, those of its last answer only if so asked.

    Answers of a conversation that was cut at a token limit (`finished` False) carry no end-of-turn supervision.
    What lies beyond `max_length` tokens is cut off.

    Raises:
        Rejected: the template refuses the conversation, or what the assistant said cannot be located in it.
        UserError: the tokenizer has no chat template.
    """
    (outcome,) = render_all([conversation], tokenizer, max_length, last_turn_only=last_turn_only)
    if isinstance(outcome, Rejected):
        raise outcome
    return outcome


def render_all(
    conversations: Iterable[Conversation], tokenizer, max_length: int | None = None, *, last_turn_only: bool = False
) -> Iterator[Rendered | Rejected]:
    """`render` for many, lazily and faster: for each conversation its rendering, or why there is none.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    finder = AnswerFinder(tokenizer)
    shared: dict[int, int] = {}  # one object for each token id, or every token of a data set would cost 28 bytes more
    remaining = iter(conversations)
    while batch := list(islice(remaining, _BATCH)):
        found = [_find(finder, conversation, last_turn_only) for conversation in batch]
        texts = [item[0] for item in found if not isinstance(item, Rejected)]
        tokens = _tokenise(tokenizer, texts) if texts else iter(())
        for conversation, item in zip(batch, found, strict=True):
            if isinstance(item, Rejected):
                yield item
                continue
            ids, offsets = next(tokens)
            mask = inside_spans(offsets, item[1])
            kept = [shared.setdefault(token, token) for token in ids[:max_length]]
            yield Rendered(conversation.id, kept, mask[:max_length], len(kept) < len(ids))


def inside_spans(offsets: list[tuple[int, int]], spans: list[Span]) -> list[bool]:
    """For tokens at `offsets` [left, right) of a text, both ascending: whether each lies wholly inside a span."""
    mask = [False] * len(offsets)
    for start, end in spans:
        first = bisect_left(offsets, start, key=itemgetter(0))
        behind = bisect_right(offsets, end, key=itemgetter(1))
        mask[first:behind] = [True] * (behind - first)
    return mask


def _tokenise(tokenizer, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Token ids and character offsets of each text. The template has written the special tokens already."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def _find(finder: AnswerFinder, conversation: Conversation, last_turn_only: bool) -> tuple[str, list[Span]] | Rejected:
    try:
        return finder.find(conversation, last_only=last_turn_only)
    except Rejected as error:
        return error
