"""Messages of a conversation in the form that chat templates expect, from the forms in which data sets hold them."""

import json
import re
from typing import Any

from dflash.errors import UserError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
THINKING_TAG = re.compile(r"(</?think>)")
_OTHER_FIELDS = (*REASONING_FIELDS, "name", "tool_call_id")


class Rejected(UserError):
    """A record or conversation that cannot be used. `reason` says why without naming the place."""

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(f"{where}: {reason}.")
        self.reason = reason


def parse_messages(raw: Any, where: str) -> list[dict[str, Any]]:
    """Messages with `role` and text `content`, and `tool_calls` and reasoning fields where there are any.

    Roles go by `role` or `from`, contents by `content` or `value`; a content in parts is joined if all are text.

    Raises:
        Rejected: no list of messages, an unknown role, a content that is no text.
    """
    if not isinstance(raw, list) or not raw:
        raise Rejected("no messages; expected a non-empty list under `messages` or `conversations`", where)
    return [_message(item, position, where) for position, item in enumerate(raw, 1)]


def parse_tools(raw: Any, where: str) -> list[dict] | None:
    """The `tools` of a record, a list of JSON schemas or its JSON text; None where there are none.

    Raises:
        Rejected: something else.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw) if raw.strip() else None
        except json.JSONDecodeError as error:
            raise Rejected(f"`tools` is text that is not valid JSON ({error.msg})", where) from error
    if not raw:
        return None
    if not isinstance(raw, list) or not all(isinstance(tool, dict) for tool in raw):
        raise Rejected("`tools` must be a list of JSON schemas", where)
    return raw


def without_thinking(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the assistant's thinking blocks and reasoning fields removed.

    A block may lack its opening tag, where the prompt already held it, or its closing tag, where it was cut off.
    """
    return [_spoken(message) if message["role"] == "assistant" else message for message in messages]


def _message(item: Any, position: int, where: str) -> dict[str, Any]:
    item = item if isinstance(item, dict) else {}
    role = ROLES.get(_first(item, "role", "from"))
    content = _text(_first(item, "content", "value"))
    calls = item.get("tool_calls") or None
    if content is None and calls and role == "assistant":
        content = ""
    if role is None or content is None:
        raise Rejected(f"message {position} needs a role out of {', '.join(sorted(ROLES))} and text content", where)
    message = {"role": role, "content": content}
    message |= {field: item[field] for field in _OTHER_FIELDS if isinstance(item.get(field), str)}
    if calls:
        message["tool_calls"] = _tool_calls(calls, position, where)
    return message


def _first(item: dict, *names: str) -> Any:
    """The first of the fields that holds anything; tables have a column of nulls for what a row does not use."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(parts) if parts and all(isinstance(part, str) for part in parts) else None
    return content if isinstance(content, str) else None


def _tool_calls(calls: Any, position: int, where: str) -> list[dict]:
    parsed = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function", call) if isinstance(call, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, str):
            # Templates write arguments as JSON themselves, so that JSON text would be quoted a second time.
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError as error:
                raise Rejected(f"the tool call's arguments in message {position} are not valid JSON", where) from error
        if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
            raise Rejected(f"message {position} has a tool call without a name or an object of arguments", where)
        call = {"type": "function", "function": {"name": name, "arguments": arguments or {}}, "id": call.get("id")}
        parsed.append({key: value for key, value in call.items() if value is not None})
    return parsed


def _spoken(message: dict[str, Any]) -> dict[str, Any]:
    pieces = THINKING_TAG.split(message["content"])
    content = message["content"]
    if len(pieces) > 1:
        thinking = pieces[1] == "</think>"
        spoken = []
        for piece in pieces:
            if THINKING_TAG.fullmatch(piece):
                thinking = piece == "<think>"
            elif not thinking:
                spoken.append(piece)
        content = "".join(spoken).strip()
    return {key: value for key, value in message.items() if key not in REASONING_FIELDS} | {"content": content}
