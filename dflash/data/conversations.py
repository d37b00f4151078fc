"""Reading and writing conversations and prompt files (JSONL, one object a line)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dflash.errors import UserError

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class Conversation:
    """Messages in the chat template's form. `finished` is False when the last answer was cut at a token limit."""

    id: str
    messages: list[dict[str, str]]
    category: str = ""
    finished: bool = True


@dataclass(frozen=True)
class Prompt:
    """An evaluation or training prompt: the user's turns, in order."""

    id: str
    turns: list[str]
    category: str = ""


def read_prompts(path: Path | str, limit: int | None = None, *, id_prefix: str = "") -> list[Prompt]:
    """All prompts of a JSONL file with `id`, `category` and `turns`; a bad line is named by number and reason.

    A prompt without an `id` goes by `id_prefix` and its line number.
    """
    prompts: list[Prompt] = []
    for number, record in islice(read_jsonl(path), limit):
        turns = record.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
            raise UserError(f"{path}, line {number}: `turns` must be a non-empty list of non-empty strings.")
        prompts.append(Prompt(str(record.get("id", f"{id_prefix}{number}")), turns, str(record.get("category", ""))))
    if not prompts:
        raise UserError(f"{path} holds no prompts: each line is an object with `id`, `category` and `turns`.")
    return prompts


def read_conversations(path: Path | str, limit: int | None = None) -> list[Conversation]:
    """All conversations of a JSONL file; messages under `conversations` or `messages`, role/content or from/value."""
    conversations: list[Conversation] = []
    for number, record in islice(read_jsonl(path), limit):
        conversations.append(_conversation(record, f"{path}, line {number}", str(number)))
    if not conversations:
        raise UserError(f"{path} holds no conversations: each line is an object with a `messages` list.")
    return conversations


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) for every non-empty line.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: expected an object, found {type(record).__name__}.")
                yield number, record
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path} could not be read: {reason}.") from error


def parse_conversation(line: str, where: str) -> Conversation:
    """One conversation from one JSON line; `where` names the line in complaints.

    Raises:
        UserError: the line is no JSON object or no conversation.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object, found {type(record).__name__}.")
    return _conversation(record, where, where)


def _conversation(record: dict, where: str, fallback_id: str) -> Conversation:
    raw = record.get("messages", record.get("conversations"))
    if not isinstance(raw, list) or not raw:
        raise UserError(f"{where}: no messages; expected a non-empty list under `messages` or `conversations`.")
    messages = []
    for position, item in enumerate(raw, 1):
        role = item.get("role", item.get("from")) if isinstance(item, dict) else None
        content = item.get("content", item.get("value")) if isinstance(item, dict) else None
        if role not in _ROLES or not isinstance(content, str):
            raise UserError(
                f"{where}: message {position} needs a role out of {', '.join(sorted(_ROLES))} and text content."
            )
        messages.append({"role": _ROLES[role], "content": content})
    return Conversation(
        str(record.get("id", fallback_id)), messages, str(record.get("category", "")), bool(record.get("finished", True))
    )
