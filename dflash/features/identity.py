"""What captured features depend on besides the tokens of a document: two runs that differ in it share no cache."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import cached_file

from dflash.config import TrainConfig
from dflash.errors import UserError
from dflash.target import TargetModel
from dflash.target_source import resolve_target

_SAMPLES = 256  # pieces of a weight file that enter its fingerprint
_SAMPLE_BYTES = 16 << 10


@dataclass(frozen=True)
class FeatureIdentity:
    """Compared field by field, so that a complaint can say what differs. Hashes are hexadecimal."""

    weights: str  # commit of a hub target, fingerprint of a folder's config and weights
    dtype: str
    layer_ids: tuple[int, ...]
    hidden_size: int
    chat_template: str
    tokenizer: str
    max_length: int  # tokens at which conversations were cut
    target: str = ""  # for messages only: the same weights may go by two names

    @classmethod
    def of(cls, config: TrainConfig, target: TargetModel, layer_ids: Sequence[int]) -> "FeatureIdentity":
        """The identity of this run's features; the target may have been loaded without its layers."""
        tokenizer = target.tokenizer
        return cls(
            weights=fingerprint(config.target.name, config.target.revision),
            dtype=str(target.dtype).removeprefix("torch."),
            layer_ids=tuple(layer_ids),
            hidden_size=target.hidden_size,
            chat_template=_digest(json.dumps(tokenizer.chat_template)),
            tokenizer=_digest(json.dumps(sorted(tokenizer.get_vocab().items()))),
            max_length=config.data.max_length,
            target=config.target.name,
        )

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "FeatureIdentity":
        """The inverse of `dataclasses.asdict`; a missing or unknown field raises TypeError."""
        return cls(**{**record, "layer_ids": tuple(record["layer_ids"])})

    @property
    def width(self) -> int:
        """Numbers per token."""
        return len(self.layer_ids) * self.hidden_size

    @property
    def bytes_per_token(self) -> int:
        return self.width * (4 if self.dtype == "float32" else 2)

    def difference(self, run: "FeatureIdentity") -> str | None:
        """The first thing in which a run wants other features than these, in words; None where they are the same."""
        for field in fields(self):
            mine, wanted = getattr(self, field.name), getattr(run, field.name)
            if field.name == "target" or mine == wanted:
                continue
            if field.name == "weights":
                return f"it holds features of target {self.target!r} ({mine}), the run's is {run.target!r} ({wanted})"
            if field.name in ("chat_template", "tokenizer"):
                return f"it was captured with another {field.name.replace('_', ' ')} than {run.target!r} has now"
            mine, wanted = (list(v) if isinstance(v, tuple) else v for v in (mine, wanted))
            return f"it was captured with {field.name} {mine}, the run has {wanted}"
        return None


def document_key(tokens: Sequence[int]) -> str:
    """Name of a document's features: a hash of its tokens, which is all that they depend on.

    So neither a conversation's id nor its place in a file matters, and equal conversations are stored once.
    """
    return hashlib.sha256(np.asarray(tokens, dtype="<u4").tobytes()).hexdigest()[:32]


def fingerprint(name: str, revision: str | None = None) -> str:
    """What tells a target's weights from others': the commit on the hub, or a hash over a folder's files.

    Weight files are sampled, 4 MiB of each: training changes nearly every piece of them, and hashing all of a large
    target would take longer than starting to train.

    Raises:
        UserError: there is no such target here.
    """
    source = resolve_target(name, revision)
    if not Path(source).is_dir():
        return f"{source}@{_commit(source, revision)}"
    config = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)  # says who wrote the file, nothing about the model
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    files = sorted(Path(source).glob("*.safetensors")) or sorted(Path(source).glob("*.bin"))
    for path in files:
        digest.update(_sampled(path))
    return digest.hexdigest()[:16]


def _commit(repository: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub target points to in the local copy."""
    try:
        path = Path(cached_file(repository, "config.json", revision=revision, local_files_only=True))
    except OSError as error:
        raise UserError(
            f"Target {repository!r} has no local copy: load it once while the hub can be reached."
        ) from error
    return path.parent.name  # .../snapshots/<commit>/config.json


def _sampled(path: Path) -> bytes:
    """Name, size and evenly spread pieces of a file."""
    size = path.stat().st_size
    last = max(size - _SAMPLE_BYTES, 0)
    with open(path, "rb") as file:
        pieces = [os.pread(file.fileno(), _SAMPLE_BYTES, i * last // (_SAMPLES - 1)) for i in range(_SAMPLES)]
    return b"".join([f"{path.name} {size}".encode(), *pieces])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
