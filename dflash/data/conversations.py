"""Reading conversations and prompt files (JSONL, one object a line)."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dflash.data.kinds import refuse_conversations
from dflash.data.messages import Rejected, parse_messages, parse_tools
from dflash.errors import UserError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Conversation:
    """Messages in the chat template's form. `finished` is False when the last answer was cut at a token limit."""

    id: str
    messages: list[dict[str, Any]]
    category: str = ""
    finished: bool = True
    tools: list[dict] | None = None  # JSON schemas of the functions that the assistant may call


@dataclass(frozen=True)
class Prompt:
    """An evaluation or training prompt: the user's turns, in order. `set` is the name of the file it came from."""

    id: str
    turns: list[str]
    category: str = ""
    language: str = ""
    set: str = ""


def read_prompts(path: Path | str, limit: int | None = None, *, id_prefix: str = "") -> list[Prompt]:
    """All prompts of a JSONL file with `turns` and, where given, `id`, `category` and `language`.

    A bad line is named by number and reason.

    A prompt without an `id` goes by `id_prefix` and its line number.
    """
    refuse_conversations(Path(path))

    def parse(record: dict, where: str, number: int) -> Prompt:
        turns = record.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
            raise Rejected("`turns` must be a non-empty list of non-empty strings", where)
        words = {name: str(record.get(name) or "") for name in ("category", "language")}
        return Prompt(str(record.get("id", f"{id_prefix}{number}")), turns, **words, set=Path(path).stem)

    return _read_all(path, limit, parse, "prompts: each line is an object with `id`, `category` and `turns`")


def read_conversations(path: Path | str, limit: int | None = None) -> list[Conversation]:
    """All conversations of a JSONL file; messages under `conversations` or `messages`, role/content or from/value."""

    def parse(record: dict, where: str, number: int) -> Conversation:
        return conversation_from(record, where, str(number))

    return _read_all(path, limit, parse, "conversations: each line is an object with a `messages` list")


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) for every non-empty line.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path} could not be read: {reason}.") from error


def parse_record(line: str, where: str) -> dict:
    """The JSON object in a line; `where` names the line in complaints.

    Raises:
        Rejected: the line is no JSON object.
    """
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
        raise Rejected(f"not valid JSON ({reason})", where) from error
    if not isinstance(record, dict):
        raise Rejected(f"expected an object, found {type(record).__name__}", where)
    return record


def parse_conversation(line: str, where: str) -> Conversation:
    """One conversation from one JSON line; `where` names the line in complaints.

    Raises:
        Rejected: the line is no JSON object or no conversation.
    """
    return conversation_from(parse_record(line, where), where, where)


def conversation_from(record: dict, where: str, fallback_id: str) -> Conversation:
    """The conversation in a record of a file or data set.

    Raises:
        Rejected: the record holds none.
    """
    given = {name: value for name, value in record.items() if value is not None}  # nulls of tables
    return Conversation(
        str(given.get("id", fallback_id)),
        parse_messages(given.get("messages", given.get("conversations")), where),
        str(given.get("category", "")),
        bool(given.get("finished", True)),
        parse_tools(given.get("tools"), where),
    )


def _read_all(
    path: Path | str, limit: int | None, parse: Callable[[dict, str, int], Parsed], expected: str
) -> list[Parsed]:
    """Every line through `parse(record, where, line number)`; `expected` completes "the file holds no"."""
    items = []
    for number, line in islice(read_lines(path), limit):
        where = f"{path}, line {number}"
        items.append(parse(parse_record(line, where), where, number))
    if not items:
        raise UserError(f"{path} holds no {expected}.")
    return items
