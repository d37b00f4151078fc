"""Which settings differ between runs."""

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """Settings that are not the same everywhere, in the order of the first tree that has them, with all values."""
    flats = [flatten(tree) for tree in trees]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    rows = [(name, tuple(in_words(flat[name]) if name in flat else ABSENT for flat in flats)) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def in_words(value: Any) -> str:
    """A setting as its YAML file would say it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(in_words(entry) for entry in value) + "]"
    return str(value)
