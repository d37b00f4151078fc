"""What a process writes into its log, shown while it does so."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

# Lines of Mooncake's own logger, which cannot be told to be silent. What matters in them is raised as an error as well.
_MOONCAKE = re.compile(rb"^(WARNING: Logging before InitGoogleLogging|[IWE]\d{4} \d\d:\d\d:).*\n", re.MULTILINE)


_PIECE = 1 << 20  # bytes read at a time; a longer line is copied in pieces


class Follower:
    """Copies what is appended to a file from now on, whole lines at a time, without Mooncake's own."""

    def __init__(self, path: Path, to: TextIO | None = None) -> None:
        self._path, self._to = path, to or sys.stderr
        self._place = path.stat().st_size if path.is_file() else 0

    def show(self, *, rest: bool = False) -> None:
        """Copy the lines that came since the last time; `rest` with one that was not ended."""
        try:
            with open(self._path, "rb") as file:
                while new := self._next(file, rest):
                    self._place += len(new)
                    with suppress(OSError):  # whoever read it is gone; the file has it
                        self._to.write(_MOONCAKE.sub(b"", new).decode(errors="replace"))
                        self._to.flush()
        except FileNotFoundError:
            return  # nothing was written yet

    def _next(self, file: BinaryIO, rest: bool) -> bytes:
        """What is to be copied next; empty where nothing is yet."""
        file.seek(self._place)
        new = file.read(_PIECE)
        if end := new.rfind(b"\n") + 1:
            return new[:end]
        return new if rest or len(new) == _PIECE else b""


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
