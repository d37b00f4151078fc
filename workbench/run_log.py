"""The end of a run's log, searched from the end: also of a log that is large or holds a line without an end."""

import os
from dataclasses import dataclass
from pathlib import Path

from dflash.errors import UserError

_SEARCHED = 8 * 2**20  # bytes from the end
_LONGEST_LINE = 2_000  # characters shown of one line


@dataclass(frozen=True)
class LogTail:
    """The last lines that match, oldest first."""

    lines: tuple[str, ...]
    matching: int  # lines that match in what was searched
    searched: int  # bytes from the end
    size: int  # bytes of the file


def log_tail(path: Path, pattern: str = "", lines: int = 300) -> LogTail:
    """The last lines that hold `pattern` (upper and lower case alike; empty takes all), of the last 8 MB.

    Raises:
        UserError: the log cannot be read. One that is not there yet is empty.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            searched = min(size, _SEARCHED)
            file.seek(size - searched)
            text = file.read(searched).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return LogTail((), 0, 0, 0)
    except OSError as error:
        raise UserError(f"{path.name} of run {path.parent.name!r} could not be read: {error.strerror}.") from error
    found = text.split("\n")
    # Not splitlines(): a form feed or a Unicode separator inside a line is no line's end.
    found = found[:-1] if not found[-1] else found
    # A progress bar rewrites its line with carriage returns: what it says last counts.
    found = [line.rstrip("\r").rpartition("\r")[2] for line in found]
    wanted = pattern.strip().casefold()
    matching = [line for line in found if wanted in line.casefold()] if wanted else found
    return LogTail(tuple(map(_shortened, matching[-lines:])), len(matching), searched, size)


def _shortened(line: str) -> str:
    hidden = len(line) - _LONGEST_LINE
    return line if hidden <= 0 else f"{line[:_LONGEST_LINE]} … ({hidden:,} more characters)"
