"""What people call a draft, and a file name for results about it. Needs no torch."""

import re
from pathlib import Path

_SHIPPED_NAMES = (None, "", "default", "shipped")


def draft_label(name: str | None) -> str:
    """ "shipped", "<run>/<checkpoint>" for a draft of a training run, else the name of its folder."""
    if name in _SHIPPED_NAMES:
        return "shipped"
    folder = Path(name).expanduser().resolve()
    checkpoint = (
        folder.parent if folder.name == "draft" else folder
    )  # a checkpoint keeps its draft in a folder of its own
    if checkpoint.parent.name == "checkpoints":
        return f"{checkpoint.parent.parent.name}/{checkpoint.name}"
    return folder.name


def file_name(label: str) -> str:
    """A label as a plain file name without an ending."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip(".-") or "draft"
