"""What a JSON-lines file is for, told by its first line: conversations and prompts belong to different commands."""

import json
from pathlib import Path
from typing import Literal

from dflash.errors import UserError

_LONGEST_LINE = 1 << 20  # bytes; what no file of ours begins with is not worth reading

Kind = Literal["conversations", "prompts"]


def kind_of(path: Path) -> Kind | None:
    """The kind of a file whose first line is a JSON object with `messages`, `conversations` or `turns`, else None."""
    try:
        with open(path, "rb") as file:
            first = next((line for line in iter(lambda: file.readline(_LONGEST_LINE), b"") if not line.isspace()), b"")
        record = json.loads(first)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if {"messages", "conversations"} & record.keys():
        return "conversations"
    return "prompts" if isinstance(record.get("turns"), list) else None


def refuse_prompts(path: Path) -> None:
    """
    Raises:
        UserError: the file holds prompts, where conversations are wanted; says which commands take them.
    """
    if kind_of(path) == "prompts":
        raise UserError(
            f"{path} holds prompts (`turns`), which have no answers to train on: give it to `dflash evaluate --prompts "
            f"{path}`, or have it answered {_answering(path)}."
        )


def refuse_conversations(path: Path) -> None:
    """
    Raises:
        UserError: the file holds conversations, where prompts are wanted; says where it belongs.
    """
    if kind_of(path) == "conversations":
        raise UserError(
            f"{path} holds conversations, not prompts (objects with `turns`): they are training data, for a config's "
            f"data.train=[{path}] or `dflash data inspect {path}`."
        )


def refuse_data_as_config(path: Path) -> None:
    """
    Raises:
        UserError: the file holds conversations or prompts, where a config is wanted; says where it belongs.
    """
    kind = kind_of(path)
    if kind == "conversations":
        raise UserError(
            f"{str(path)!r} holds JSON lines of conversations and is no config: give a YAML file or a recipe, and the "
            f"conversations as data.train=[{path}]."
        )
    if kind == "prompts":
        raise UserError(
            f"{str(path)!r} holds JSON lines of prompts and is no config: give a YAML file or a recipe, and have the "
            f"prompts answered {_answering(path)}."
        )


def _answering(path: Path) -> str:
    """Both ways from prompts to training data."""
    return (
        f"with `dflash synthesize --prompts {path} --out FILE`, or by SGLang servers with `dflash regenerate {path} "
        "--server URL --out FILE`"
    )
