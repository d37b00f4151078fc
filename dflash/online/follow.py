"""What a process writes into its log, shown while it does so."""

import sys
from pathlib import Path
from typing import TextIO


class Follower:
    """Copies what is appended to a file from now on, whole lines at a time."""

    def __init__(self, path: Path, to: TextIO | None = None) -> None:
        self._path, self._to = path, to or sys.stderr
        self._place = path.stat().st_size if path.is_file() else 0

    def show(self, *, rest: bool = False) -> None:
        """Copy the lines that came since the last time; `rest` with one that was not ended."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._place)
                new = file.read()
        except FileNotFoundError:
            return  # nothing was written yet
        end = len(new) if rest else new.rfind(b"\n") + 1
        if end:
            self._place += end
            self._to.write(new[:end].decode(errors="replace"))
            self._to.flush()
