"""What the Decode page's controls, a permalink or the API ask for."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from dflash.data.messages import Rejected, parse_messages
from dflash.decoding.sampling import Sampling
from dflash.errors import UserError

MAX_HISTORY = 64  # messages
_KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class RaceSettings:
    """One decoding. `block_size` 0 takes the draft's own; `history` is the conversation before the prompt."""

    prompt: str
    max_new_tokens: int = 128
    block_size: int = 0
    temperature: float = 0.0
    rule: str = "target"
    draft: str = ""
    seed: int = 0
    history: tuple[dict[str, str], ...] = ()

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, rule=self.rule, seed=self.seed)

    def messages(self) -> list[dict[str, str]]:
        """The history and the prompt behind it.

        Raises:
            UserError: the prompt is empty.
        """
        if not self.prompt.strip():
            raise UserError("The prompt is empty: write at least one word.")
        return [*self.history, {"role": "user", "content": self.prompt}]

    @classmethod
    def from_query(cls, query: dict[str, str], defaults: "RaceSettings") -> "RaceSettings":
        """Settings of a permalink; what it does not name keeps its default.

        Raises:
            UserError: a value is not of its field's kind.
        """
        values = {name: getattr(defaults, name) for name in cls.__dataclass_fields__}
        for name, raw in query.items():
            if name == "history" and raw:
                values[name] = parse_history(raw, "The link's history")
            elif name in values and raw:
                values[name] = _number_or_text(name, raw, type(values[name]))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self) | {"history": list(self.history)}


def parse_history(given: str | list | None, where: str = "The conversation so far") -> tuple[dict[str, str], ...]:
    """Messages of a conversation, as a list or its JSON text; only who spoke and what was said is kept.

    Raises:
        UserError: something else, a turn without text, or too many; `where` names it.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else []
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where} is no JSON list of messages: clear it and begin anew.") from error
    if not given:
        return ()
    if not isinstance(given, list):
        raise UserError(f"{where} is no JSON list of messages: clear it and begin anew.")
    if len(given) > MAX_HISTORY:
        raise UserError(f"{where} has {len(given)} messages: keep {MAX_HISTORY} or fewer.")
    messages = parse_messages(given, where)
    for number, message in enumerate(messages, 1):
        if message["role"] == "tool" or not message["content"].strip():
            raise Rejected(f"message {number} must be of system, user or assistant, and have text", where)
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _number_or_text(name: str, raw: str, kind: type) -> Any:
    try:
        value = kind(raw)
    except ValueError as error:
        raise UserError(f"The link's {name} is {raw!r}: it must be {_KINDS[kind]}.") from error
    if kind is float and not math.isfinite(value):
        raise UserError(f"The link's {name} is {raw!r}: it must be a finite number.")
    return value
