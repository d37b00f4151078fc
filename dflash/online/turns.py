"""Which answers of a conversation the target gives anew, and what it is asked for each.

Either all of them, one after the other, so that it always sees its own earlier answers; or the last one only, behind
the answers that were given. What the user says later was said to the old answers, and is asked all the same.
"""

from typing import Any

from dflash.data.conversations import Conversation
from dflash.data.messages import Rejected

Message = dict[str, Any]


def questions(conversation: Conversation, *, last_only: bool) -> list[list[Message]]:
    """What stands before each answer, in parts: the first one opens the conversation, each further one follows an
    answer. With `last_only` one part, which holds the earlier answers as they were given.

    Raises:
        Rejected: nobody asks anything, or the answers hang together with tools whose results cannot be given anew.
    """
    messages = conversation.messages
    ends = [place for place in range(1, len(messages) + 1) if _asked(messages, place)]
    if not ends:
        raise Rejected("no turn of the user", conversation.id)
    if last_only:
        return [messages[: ends[-1]]]
    if any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        raise Rejected("tool calls, whose results belong to the answers that were given", conversation.id)
    parts = [messages[start:end] for start, end in zip([0, *ends], ends)]
    return [[message for message in part if message["role"] != "assistant"] for part in parts]


def _asked(messages: list[Message], place: int) -> bool:
    """Whether an answer is due before message number `place`: somebody spoke, and the next one is an answer or none."""
    due = place == len(messages) or messages[place]["role"] == "assistant"
    if not any(message["role"] == "assistant" for message in messages):
        due = due or messages[place]["role"] == "user"
    return due and messages[place - 1]["role"] not in ("assistant", "system")
