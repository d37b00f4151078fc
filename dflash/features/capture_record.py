"""What a capture did, and the note in the cache by which the same command ends at once when all is there already.

    finished.json   for every finished capture: key of what was asked for -> its counts, and the shards' sizes then

A key stands for the config's data, layers and target, and for size and time of every file they come from. Whatever
changes makes another key, and then the conversations are rendered and compared with the cache one by one.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dflash.config import TrainConfig
from dflash.data.sources import is_file
from dflash.embedded import EMBEDDED_NAME, converted_folder
from dflash.files import write_atomically

_FILE = "finished.json"
_RENDERING = ("subset", "split", "limit", "max_length", "min_supervised", "thinking", "last_turn_only")
_PACKAGES = ("dflash-workbench", "transformers", "tokenizers")  # that decide how a conversation is rendered


@dataclass
class CaptureReport:
    """Counts over this call: documents, tokens and bytes written, and documents that were there already."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: int = 0
    resumed: int = 0
    seconds: float = 0.0
    bytes_per_token: int = 0


def request_key(config: TrainConfig, layer_ids: tuple[int, ...]) -> str | None:
    """What a capture asks for, as hexadecimal; None where that does not hang on local files alone.

    Ask before anything is read: a file that changes meanwhile must not pass for the one that was captured.
    """
    name = config.target.name
    folder = converted_folder() if name == EMBEDDED_NAME else Path(name).expanduser()
    if not layer_ids or not folder.is_dir() or not all(map(is_file, config.data.train)):
        return None
    try:
        files = [_state(path) for path in sorted(folder.iterdir()) if path.is_file()]
        files += [_state(Path(source).expanduser()) for source in config.data.train]
    except OSError:
        return None  # said in words by whoever opens it
    asked = {
        "files": files,
        "data": {name: getattr(config.data, name) for name in _RENDERING},
        "dtype": config.target.dtype,
        "layer_ids": layer_ids,
        "packages": [_version(package) for package in _PACKAGES],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def finished_before(folder: Path, key: str) -> tuple[CaptureReport, int] | None:
    """The report of a capture that has nothing left to do, and how many conversations cannot be used.

    None where this capture was never finished, or one of its shards is no longer as it was.
    """
    found = _read(folder).get(key)
    if found is None or not (folder / "cache.json").is_file():
        return None
    for name, size in found["shards"].items():
        shard = folder / name
        if not shard.is_file() or shard.stat().st_size != size or not shard.with_suffix(".json").is_file():
            return None
    report = CaptureReport(resumed=found["documents"], bytes_per_token=found["bytes_per_token"])
    return report, found["rejected"]


def note_finished(folder: Path, key: str, report: CaptureReport, rejected: int) -> None:
    """Note that all of what `key` stands for is in the cache."""
    shards = {path.name: path.stat().st_size for path in sorted(folder.glob("shard-*.safetensors"))}
    entry = {
        "documents": report.documents + report.resumed,
        "rejected": rejected,
        "bytes_per_token": report.bytes_per_token,
        "shards": shards,
    }
    write_atomically(folder / _FILE, json.dumps({**_read(folder), key: entry}, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # only a shortcut: without it the cache itself is asked


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
