"""Where in a rendered conversation the assistant's own words stand, exactly and without looking for strings.

The conversation is rendered a second time with marks (private-use characters that occur nowhere in it) around what
each message says. Taking the marks out again has to give the first rendering, character by character: then the template
treated the marks as part of the words, and each mark's place is exact, whatever the template did with earlier turns
(Qwen3's drops their thinking blocks). Renderings of the conversation's beginning tell what surrounds an answer's marks:

- with the prompt for an answer in its place: from where on the assistant writes, `<think>` or `<tool_call>` included;
- with a bare mark as its answer: what the template writes before any answer, an empty thinking block say;
- up to the answer: what the template writes behind it, of which the end-of-turn token is the assistant's.

Only what stands in the final rendering in the very same place is taken from them; where it does not, the span is the
narrower one between the marks. A template with `{% generation %}` tags says all this itself and is taken at its word.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from dflash.data.conversations import Conversation
from dflash.data.messages import REASONING_FIELDS, THINKING_TAG, Rejected
from dflash.errors import UserError

Span = tuple[int, int]  # characters [start, end) of a rendered text
Message = dict[str, Any]

_FIRST_MARK, _LAST_MARK = 0xF0000, 0xFFFFD
_MARKS = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Mark:
    """A mark in a rendering: the message whose words it bounds, and its character index once all marks are out."""

    message: int
    at: int
    in_call: bool  # it bounds the name in a tool call


@dataclass
class Marker:
    """Puts marks into messages and finds them in renderings."""

    _owners: list[tuple[int, bool]] = field(default_factory=list)

    def message(self, index: int, message: Message) -> Message:
        """A copy with marks around its words, so that templates that trim or take out thinking blocks still do."""
        marked = message | {"content": self.text(index, message["content"])}
        for name in REASONING_FIELDS:
            if name in message:
                marked[name] = self.text(index, message[name])
        if "tool_calls" in message:
            marked["tool_calls"] = [self._call(index, call) for call in message["tool_calls"]]
        return marked

    def text(self, index: int, text: str) -> str:
        """`text` with marks around every stretch between thinking tags, inside its white space."""
        pieces = THINKING_TAG.split(text)
        for i in range(0, len(pieces), 2):  # the odd ones are the tags
            if words := pieces[i].strip():
                before, after = pieces[i].split(words, 1)
                pieces[i] = f"{before}{self.new(index)}{words}{self.new(index)}{after}"
        return "".join(pieces)

    def new(self, index: int, in_call: bool = False) -> str:
        self._owners.append((index, in_call))
        return chr(_FIRST_MARK + len(self._owners) - 1)

    def read(self, rendering: str) -> tuple[str, list[Mark]]:
        """The rendering without marks, and the marks in the order in which they stood there."""
        marks = []
        for count, match in enumerate(_MARKS.finditer(rendering)):
            message, in_call = self._owners[ord(match.group()) - _FIRST_MARK]
            marks.append(Mark(message, match.start() - count, in_call))
        return _MARKS.sub("", rendering), marks

    def _call(self, index: int, call: dict) -> dict:
        name = f"{self.new(index, True)}{call['function']['name']}{self.new(index, True)}"
        return call | {"function": call["function"] | {"name": name}}


class AnswerFinder:
    """Finds the answers in conversations rendered by one tokenizer's chat template.

    Raises:
        UserError: the tokenizer has no chat template or gives no character offsets.
    """

    def __init__(self, tokenizer) -> None:
        if not tokenizer.chat_template:
            raise UserError("The target's tokenizer has no chat template: choose an instruction-tuned target.")
        if not tokenizer.is_fast:
            raise UserError("The target's tokenizer gives no character offsets: choose a target with a tokenizer.json.")
        self._tokenizer = tokenizer
        self._end_of_turn = lru_cache(maxsize=1024)(self._find_end_of_turn)

    def find(self, conversation: Conversation, *, last_only: bool = False) -> tuple[str, list[Span]]:
        """The rendered text and the spans of it that the assistant wrote, ascending; `last_only`: in its last answer.

        A span ends with the end-of-turn token, except the last one of an unfinished conversation.

        Raises:
            Rejected: the template refuses the conversation or changes its words, so that they cannot be located.
        """
        return _Search(self, conversation).spans(last_only)

    def render(self, conversation: Conversation, messages: list[Message], prompt: bool = False) -> str:
        """The text of the messages, with the conversation's tools; `prompt`: and the opening of an answer."""
        try:
            return self._tokenizer.apply_chat_template(
                messages, tools=conversation.tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise _refused(conversation, error) from error

    def tagged_spans(self, conversation: Conversation) -> list[Span] | None:
        """What stands between the template's generation tags; None where it has none."""
        template = self._tokenizer.get_chat_template(None, conversation.tools)
        if not _GENERATION_TAG.search(template):
            return None
        try:
            _, (spans,) = render_jinja_template(
                conversations=[conversation.messages],
                tools=conversation.tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise _refused(conversation, error) from error
        return spans

    def end_of_turn(self, tail: str) -> int:
        """Characters of `tail`, the text behind an answer's words, up to and including its end-of-turn token."""
        return self._end_of_turn(tail)

    def _find_end_of_turn(self, tail: str) -> int:
        encoded = self._tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
        ends = [(token, right) for token, (_, right) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)]
        # Tool calls may close with special tokens of their own before the one that ends the turn.
        for wanted in ({self._tokenizer.eos_token_id}, set(self._tokenizer.all_special_ids)):
            if found := next((right for token, right in ends if token in wanted), None):
                return found
        return len(tail)


class _Search:
    """The search for the answers of one conversation."""

    def __init__(self, finder: AnswerFinder, conversation: Conversation) -> None:
        self._finder, self._conversation = finder, conversation
        self._marker = Marker()
        self._marked = [self._marker.message(i, message) for i, message in enumerate(conversation.messages)]
        self._text = finder.render(conversation, conversation.messages)
        if _MARKS.search(self._text):
            raise self._rejected("it holds private-use characters of Unicode plane 15, which are needed as marks")
        plain, self._marks = self._read(self._marked)
        if plain != self._text:
            raise self._rejected("the chat template changes what is said, so that it cannot be located")

    def spans(self, last_only: bool) -> tuple[str, list[Span]]:
        messages = self._conversation.messages
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        between = {i: self._between_marks(i) for i in answers}
        cut = None if self._conversation.finished else len(messages) - 1  # the message without an end of turn
        spans = self._finder.tagged_spans(self._conversation)
        if spans is not None:
            return self._text, self._narrow(spans, between.get(answers[-1]) if last_only else None, between.get(cut))
        spans = []
        for index in answers[-1:] if last_only else answers:
            if between[index] is not None:
                first, last = between[index]
                spans.append((self._start(index, first), last if index == cut else self._end(index, last)))
        return self._text, spans

    def _between_marks(self, index: int) -> Span | None:
        """From the first to the last of the words of message `index`; None where the template left all of them out."""
        own = [i for i, mark in enumerate(self._marks) if mark.message == index]
        if self._conversation.messages[index].get("tool_calls") and not any(self._marks[i].in_call for i in own):
            raise self._rejected("the chat template does not render tool calls")
        if not own:
            return None
        if own[-1] - own[0] + 1 != len(own):
            raise self._rejected("the chat template mixes one message with another")
        return self._marks[own[0]].at, self._marks[own[-1]].at

    def _start(self, index: int, first: int) -> int:
        """Where the assistant begins to write message `index`, whose first words stand at `first`."""
        if index == 0:
            return first
        here = self._behind(self._marks, index - 1)
        prompt, marks = self._read(self._marked[:index], prompt=True)
        prompt = prompt[self._behind(marks, index - 1) :]
        start = here + len(prompt)
        if start > first or not self._text.startswith(prompt, here):
            return first
        if start < first:
            bare = {"role": "assistant", "content": self._marker.new(index)}
            text, marks = self._read([*self._marked[:index], bare])
            there = self._behind(marks, index - 1)
            before_any = text[there + len(prompt) : self._behind(marks, index)]
            if text.startswith(prompt, there) and self._text.startswith(before_any, start):
                start += len(before_any)
        return start

    def _end(self, index: int, last: int) -> int:
        """Where the assistant ends message `index`, whose last words end at `last`."""
        tail = self._text[last:]
        if index < len(self._marked) - 1:
            text, marks = self._read(self._marked[: index + 1])
            tail = text[self._behind(marks, index) :]
        return last + self._finder.end_of_turn(tail) if self._text.startswith(tail, last) else last

    @staticmethod
    def _behind(marks: list[Mark], index: int) -> int:
        """Index behind the last words of message `index`; 0, the beginning of the text, where none are left."""
        return next((mark.at for mark in reversed(marks) if mark.message == index), 0)

    @staticmethod
    def _narrow(spans: list[Span], last: Span | None, cut: Span | None) -> list[Span]:
        """The tagged spans, of the last answer only if it is given, and only to the end of the cut one if given."""
        if last is not None:
            spans = [span for span in spans if span[1] > last[0]]
        if cut is not None:
            spans = [(start, min(end, cut[1])) for start, end in spans if start < cut[1]]
        return spans

    def _read(self, messages: list[Message], prompt: bool = False) -> tuple[str, list[Mark]]:
        return self._marker.read(self._finder.render(self._conversation, messages, prompt))

    def _rejected(self, reason: str) -> Rejected:
        return Rejected(reason, f"Conversation {self._conversation.id!r}")


def _refused(conversation: Conversation, error: Exception) -> Rejected:
    reason = " ".join(str(error).split()).rstrip(".")
    return Rejected(f"the chat template refuses it: {reason}", f"Conversation {conversation.id!r}")
