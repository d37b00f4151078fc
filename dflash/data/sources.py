"""What a name under `data.train` means, judged without reading anything: a JSONL file, local data, or a hub data set."""

import re
from pathlib import Path

_DATA_SUFFIXES = (".parquet", ".arrow", ".csv", ".json", ".zst", ".gz")


def is_jsonl(source: str) -> bool:
    """A plain file of one JSON object a line, read without the `datasets` library."""
    return source.endswith(".jsonl")


def is_hub_id(source: str) -> bool:
    """A name that can only be a data set on the Hugging Face hub: nothing here has it, and no path looks like it."""
    if is_jsonl(source) or source.endswith(_DATA_SUFFIXES) or Path(source).expanduser().exists():
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source) is not None
