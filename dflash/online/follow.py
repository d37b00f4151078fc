"""What a process writes into its log, shown while it does so."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# Lines of Mooncake's own logger, which cannot be told to be silent. What matters in them is raised as an error as well.
_MOONCAKE = re.compile(rb"^(WARNING: Logging before InitGoogleLogging|[IWE]\d{4} \d\d:\d\d:).*\n", re.MULTILINE)


class Follower:
    """Copies what is appended to a file from now on, whole lines at a time, without Mooncake's own."""

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
            self._to.write(_MOONCAKE.sub(b"", new[:end]).decode(errors="replace"))
            self._to.flush()


@contextmanager
def errors_into(log: Path) -> Iterator[None]:
    """Append what this process, its C++ libraries included, writes to stderr to a file."""
    sys.stderr.flush()
    before, file = os.dup(2), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(file)
