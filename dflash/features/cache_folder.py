"""The feature cache on disk: numbered safetensors shards, each with an index beside it.

    cache.json                  version of this format, and the identity of the features
    shard-00000.safetensors     one tensor [s, n*E] per document, named by the document's key
    shard-00000.json            size of the shard; key, conversation id, length and checksum of each document

A shard counts once its index is there. Both are written under another name, brought to disk and renamed, the index
last: whatever ends the writer, complete shards stay and nothing else is ever read.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dflash.errors import UserError
from dflash.features.identity import FeatureIdentity
from dflash.files import locked, write_atomically

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the features of one document lie: shard number, tokens, CRC-32 of the tensor's bytes."""

    shard: int
    length: int
    checksum: int


class CacheFolder:
    """Paths and small files of one cache."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        # A folder, since safetensors writes under a name of its own choice before it renames.
        self._staging = self.path / ".staging"

    @property
    def identity(self) -> FeatureIdentity:
        """What the features in here were captured with.

        Raises:
            UserError: this is no feature cache, or one of another version.
        """
        path = self.path / "cache.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != _FORMAT:
                raise UserError(
                    f"Feature cache {str(self.path)!r} has format {record['format']}, this version reads {_FORMAT}: "
                    "capture again into another folder."
                )
            return FeatureIdentity.from_json(record["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(self.path)!r} holds no feature cache (no usable cache.json): give a folder that "
                "`dflash capture CONFIG --out DIR` wrote."
            ) from error

    @contextmanager
    def opened_for_writing(self, identity: FeatureIdentity) -> Iterator[None]:
        """Create the cache, or go on with one of the same identity, as its only writer.

        Raises:
            UserError: another process is writing, or the folder holds something else.
            OSError: it cannot be written.
        """
        if self.path.is_dir() and not (self.path / "cache.json").exists() and not self._holds_only_leftovers():
            raise UserError(f"{str(self.path)!r} holds other files: give a new folder, or that of a feature cache.")
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError as error:
                raise UserError(
                    f"Another process is capturing into {str(self.path)!r}: wait until it is done, or give another "
                    "folder as --out."
                ) from error
            if (self.path / "cache.json").exists():
                if difference := self.identity.difference(identity):
                    raise UserError(f"Feature cache {str(self.path)!r}: {difference}; give another folder as --out.")
            else:
                record = {"format": _FORMAT, "identity": asdict(identity)}
                write_atomically(self.path / "cache.json", json.dumps(record, indent=2) + "\n")
            self._sweep()
            yield

    def entries(self) -> dict[str, Entry]:
        """Every document by its key.

        Raises:
            UserError: an index cannot be read, or its shard is gone or cut off.
        """
        found: dict[str, Entry] = {}
        for index in self._indices():
            number = _number(index)
            record = self._read_index(index)
            if _size(self.shard(number)) != record["bytes"]:
                raise self.damaged(number)
            for key, document in record["documents"].items():
                found[key] = Entry(number, document["length"], document["checksum"])
        return found

    def shard(self, number: int) -> Path:
        return self.path / f"shard-{number:05d}.safetensors"

    def write_shard(self, documents: dict[str, tuple[str, torch.Tensor]]) -> int:
        """Add one shard of `key -> (conversation id, features [s, n*E])`; returns its size in bytes.

        Raises:
            OSError: it could not be written; nothing of it is left.
        """
        number = max(map(_number, self._indices()), default=-1) + 1
        tensors = {key: features.contiguous() for key, (_, features) in documents.items()}
        path = self.shard(number)
        staging = self._staging / path.name
        try:
            self._staging.mkdir(exist_ok=True)
            save_file(tensors, staging)
            # safetensors makes private files; a cache is as readable as its folder's other files.
            staging.chmod((self.path / "cache.json").stat().st_mode)
            _to_disk(staging)
            os.replace(staging, path)
        except SafetensorError as error:  # how safetensors reports a full disk
            reason = re.sub(r"^.*I/O error: | \(os error \d+\)$", "", str(error))
            raise OSError(errno.EIO, reason, str(path)) from error
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
        index = {
            "bytes": path.stat().st_size,
            "documents": {
                key: {"id": documents[key][0], "length": len(features), "checksum": checksum(features)}
                for key, features in tensors.items()
            },
        }
        write_atomically(path.with_suffix(".json"), json.dumps(index) + "\n")
        _to_disk(self.path)
        return index["bytes"]

    def damaged(self, number: int) -> UserError:
        """The complaint about a shard that is not what its index says."""
        return UserError(
            f"Shard {str(self.shard(number))!r} is damaged or missing: delete it and run `dflash capture CONFIG --out "
            f"{self.path}` again, which captures its documents anew and no others."
        )

    def _indices(self) -> list[Path]:
        return sorted(self.path.glob("shard-*.json"))

    def _read_index(self, path: Path) -> dict:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["bytes"], record["documents"]
            return record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Index {str(path)!r} is damaged: delete it and run `dflash capture CONFIG --out {self.path}` again, "
                "which captures the documents of its shard anew."
            ) from error

    def _sweep(self) -> None:
        """Remove what an interrupted writer left, and the indices of shards that the user deleted."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for path in (*self.path.glob(".shard-*.tmp"), *self.path.glob(".cache.json.*.tmp")):
            path.unlink()
        for index in self._indices():
            if not index.with_suffix(".safetensors").exists():
                index.unlink()
        for shard in self.path.glob("shard-*.safetensors"):
            if not shard.with_suffix(".json").exists():
                shard.unlink()

    def _holds_only_leftovers(self) -> bool:
        """Whether nothing but the traces of a writer that ended before cache.json was complete lies here."""
        return all(path.name == ".lock" or path.name.startswith(".cache.json.") for path in self.path.iterdir())


def checksum(features: torch.Tensor) -> int:
    """CRC-32 of the bytes of a contiguous tensor on the CPU."""
    return zlib.crc32(features.view(torch.uint8).numpy())


def _number(index: Path) -> int:
    return int(index.stem.removeprefix("shard-"))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
