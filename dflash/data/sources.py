"""What a name under `data.train` means, judged by its name and by what is there, without opening anything."""

import re
from pathlib import Path

_TABLES = (".parquet", ".arrow")
_LARGEST_COUNTED = 1 << 28  # bytes: a dry run should answer at once


def is_jsonl(source: str) -> bool:
    """A file of one JSON object a line, which is read without the `datasets` library."""
    return source.endswith((".jsonl", ".json")) or (not source.endswith(_TABLES) and Path(source).expanduser().is_file())


def is_file(source: str) -> bool:
    """A single file, be it JSONL or a table: it has neither configurations nor splits."""
    return source.endswith(_TABLES) or is_jsonl(source)


def is_hub_id(source: str) -> bool:
    """A name that can only be a data set on the Hugging Face hub: nothing here has it, and no path looks like it."""
    if is_file(source) or Path(source).expanduser().exists():
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source) is not None


def count_conversations(sources: list[str], limit: int | None) -> int | None:
    """How many conversations the sources hold at most; None where that cannot be told without reading a data set.

    `limit` is the most that is taken from each source. Lines are counted, in about a second per GB.
    """
    counts = [_count_lines(Path(s).expanduser(), limit) if is_jsonl(s) else limit for s in sources]
    return None if None in counts else sum(counts)


def _count_lines(path: Path, limit: int | None) -> int | None:
    """Non-empty lines of a file, at most `limit`; of a missing or very large one, nothing but the limit is known."""
    if not path.is_file() or path.stat().st_size > _LARGEST_COUNTED:
        return limit
    count = 0
    with open(path, "rb") as file:
        for line in file:
            count += not line.isspace()
            if count == limit:
                break
    return count
