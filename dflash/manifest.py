"""A folder's list of files with sizes and checksums, by which damage is found before anything is loaded."""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from dflash.files import naming

_CHUNK = 1 << 22  # bytes read at a time

Entries = dict[str, dict[str, int]]  # relative path -> size in bytes, crc32


def describe(folder: Path, files: Iterable[Path]) -> Entries:
    """Size and CRC-32 of files below `folder`, which are made durable on the way."""
    return {str(path.relative_to(folder)): _describe_file(path) for path in sorted(files)}


def write_manifest(path: Path, entries: Entries) -> None:
    """Write the list durably; `entries` as `describe` gave them."""
    with naming(path), open(path, "w", encoding="utf-8") as file:
        json.dump(entries, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path) -> Entries:
    """Raises OSError or ValueError where there is none or it is damaged."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    sound = isinstance(entries, dict) and all(
        isinstance(entry, dict) and {"size", "crc32"} <= entry.keys() for entry in entries.values()
    )
    if not sound:
        raise ValueError(f"{path.name} is not of the form that was written")
    return entries


def find_damage(folder: Path, entries: Entries) -> str | None:
    """What is wrong with the first file that is not as it was written; None when all are."""
    for name, entry in sorted(entries.items()):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{name} has {size:,} bytes instead of {entry['size']:,}"
        if _checksum(path) != entry["crc32"]:
            return f"{name} does not match its checksum"
    return None


def _describe_file(path: Path) -> dict[str, int]:
    with naming(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return {"size": path.stat().st_size, "crc32": _checksum(path)}


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
