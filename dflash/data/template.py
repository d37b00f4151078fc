"""Conversations to tokens: the target's chat template and a loss mask that is exact at token level.

The text is rendered once and tokenised once with character offsets. Where an assistant answer begins and ends is found
by rendering the conversation with that answer's prefix only, never by searching for strings in the text.
"""

from dataclasses import dataclass

from dflash.data.conversations import Conversation
from dflash.errors import UserError


@dataclass(frozen=True)
class Rendered:
    """One conversation as the target sees it; both lists have S entries."""

    id: str
    input_ids: list[int]
    loss_mask: list[bool]  # True on tokens the assistant produced, its end-of-turn token included

    @property
    def supervised(self) -> int:
        return sum(self.loss_mask)


def render(conversation: Conversation, tokenizer, max_length: int | None = None) -> Rendered:
    """Apply the chat template and mark the assistant's tokens.

    Answers of a conversation that was cut at a token limit (`finished` False) carry no end-of-turn supervision.

    Raises:
        UserError: the tokenizer has no chat template, or the template rewrites earlier turns, so that what the
            assistant said cannot be located.
    """
    if not tokenizer.chat_template:
        raise UserError("The target's tokenizer has no chat template: choose an instruction-tuned target.")
    messages = conversation.messages
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = [
        _answer_span(conversation, index, text, tokenizer)
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded.input_ids, encoded.offset_mapping
    mask = [any(start <= left and right <= end for start, end in spans) for left, right in offsets]
    if max_length is not None:
        ids, mask = ids[:max_length], mask[:max_length]
    return Rendered(conversation.id, ids, mask)


def _answer_span(conversation: Conversation, index: int, text: str, tokenizer) -> tuple[int, int]:
    """Characters [start, end) of `text` that the assistant produced in message `index`."""
    messages = conversation.messages
    before = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
    through = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
    if not (text.startswith(before) and text.startswith(through)):
        raise UserError(
            f"Conversation {conversation.id!r}: the chat template rewrites earlier turns, so the answer in message "
            f"{index + 1} cannot be located; train on single-turn conversations with this target."
        )
    answer = text[len(before) : len(through)]
    said = messages[index]["content"].strip()
    # Templates may strip the content and may write something of their own before it, an empty thinking block say.
    start = max(0, answer.find(said))
    last = index == len(messages) - 1
    if last and not conversation.finished:
        return len(before) + start, len(before) + start + len(said)
    # What follows the end-of-turn token (a newline in ChatML) is written by the template, not by the assistant.
    return len(before) + start, len(before) + start + len(said) + _end_of_turn(answer[start + len(said) :], tokenizer)


def _end_of_turn(tail: str, tokenizer) -> int:
    """Characters of `tail`, the text behind an answer's content, up to and including its end-of-turn token."""
    ids = tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
    specials = set(tokenizer.all_special_ids)
    ends = [right for token, (_, right) in zip(ids.input_ids, ids.offset_mapping, strict=True) if token in specials]
    return ends[0] if ends else len(tail)
