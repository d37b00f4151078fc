"""What the Anatomy page's controls or a permalink ask for."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from workbench.examples import EXAMPLE_CONVERSATIONS
from workbench.link_store import LinkStore

OWN = "Your own (paste or drop JSONL)"
_KINDS = {int: "a whole number", float: "a number", bool: "1 or 0"}


@dataclass(frozen=True)
class AnatomyQuery:
    """Every control of the page. `tile` is "row, column" or empty: then the cells of the chosen block are shown."""

    conversation: str = list(EXAMPLE_CONVERSATIONS)[-1]
    line: str = ""
    packing: bool = False
    item: int = 1
    length: int = 2048
    anchors: int = 48
    size: int = 8
    gamma: float = 4.0
    window: int = 0
    seed: int = 0
    block: int = 4
    tile: str = ""
    file: str | None = None  # an uploaded one; never part of a link

    @classmethod
    def of(cls, *values: Any) -> "AnatomyQuery":
        """From the values of the controls, in the order of the fields; an emptied number counts as its default."""
        given = {}
        for field, value in zip(fields(cls), values, strict=True):
            kind = type(field.default)
            missing = value is None or value == ""
            given[field.name] = value if kind is type(None) else field.default if missing else kind(value)
        return cls(**given)

    @classmethod
    def from_query(cls, query: dict[str, str], runs: Path) -> "AnatomyQuery":
        """Settings of a permalink; `input` names conversations that were kept for it.

        Raises:
            UserError: a value is not of its field's kind, or the conversations are not here any more.
        """
        given: dict[str, Any] = {}
        for field in fields(cls):
            raw = query.get(field.name)
            if raw and field.name not in ("file", "line"):
                given[field.name] = _parsed(field.name, raw, type(field.default))
        if query.get("input"):
            given |= {"conversation": OWN, "line": input_store(runs).open(query["input"])}
        elif given.get("conversation") == OWN:
            raise UserError("The link names no kept conversation: take the whole link that Copy link gave.")
        return cls(**given)

    def to_query(self) -> dict[str, Any]:
        """What a link has to name: whatever is not as the page shows it first."""
        values = {name: getattr(self, name) for name in self.names()}
        return {
            name: int(value) if isinstance(value, bool) else value
            for name, value in values.items()
            if value != getattr(DEFAULTS, name) or name == "seed"
        }

    @property
    def place(self) -> tuple[int, int] | None:
        """The tile's row and column; None for the chosen block.

        Raises:
            UserError: the text names no tile.
        """
        if not self.tile.strip():
            return None
        try:
            row, column = (int(part) for part in self.tile.split(","))
        except ValueError as error:
            raise UserError(f"{self.tile[:40]!r} names no tile: write its row and column, as in 0, 12.") from error
        return row, column

    @staticmethod
    def names() -> list[str]:
        """The fields that a link may name."""
        return [field.name for field in fields(AnatomyQuery) if field.name not in ("file", "line")]


DEFAULTS = AnatomyQuery()


def input_store(runs: Path) -> LinkStore:
    """Where conversations are kept that a link refers to."""
    return LinkStore(runs / ".inputs", "set of conversations", max_bytes=2 << 20)


def _parsed(name: str, raw: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"0": False, "1": True}[raw]
        value = kind(raw)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError) as error:
        raise UserError(f"The link's {name} is {raw[:40]!r}: it must be {_KINDS[kind]}.") from error
    return value
