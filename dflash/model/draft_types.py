"""The kinds of draft that `draft.type` may name. A class is imported when asked for, so this module stays cheap."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dflash.model.draft import DFlashDraft

_CLASSES = {"dflash": ("dflash.model.draft", "DFlashDraft")}

DRAFT_TYPES = tuple(_CLASSES)


def draft_class(kind: str) -> "type[DFlashDraft]":
    """The class of a kind of draft.

    Raises:
        TypeError: no such kind; the message says which are supported.
    """
    if kind not in _CLASSES:
        raise TypeError(f"Draft type {kind!r} is not supported: choose one of {', '.join(DRAFT_TYPES)}.")
    module, name = _CLASSES[kind]
    return getattr(import_module(module), name)
