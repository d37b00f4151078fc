"""Writing files so that nobody ever reads half of one."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a crash never sees half of it.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(staging, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
