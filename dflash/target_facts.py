"""What a config needs to know about its target, read from config.json alone: no torch, no transformers, no network."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.embedded import EMBEDDED_NAME, converted_folder
from dflash.errors import UserError


@dataclass(frozen=True)
class TargetFacts:
    """Sizes of a target of dense gated-MLP decoder layers; `origin` says where they were read."""

    origin: str
    depth: int  # decoder layers
    hidden_size: int
    intermediate_size: int | None
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int | None  # positions
    tied: bool  # the LM head is the embedding
    head_norms: bool = False  # query and key norms, as in Qwen3
    special_ids: tuple[tuple[str, int], ...] = ()  # (role, id) of tokens that text does contain

    @property
    def parameters(self) -> int | None:
        """Weights of embedding, layers and head; None where the MLP's width is not one number."""
        if self.intermediate_size is None:
            return None
        width, inner = self.hidden_size, self.heads * self.head_dim
        attention = 2 * width * inner + 2 * width * self.kv_heads * self.head_dim
        norms = 2 * width + (2 * self.head_dim if self.head_norms else 0)
        layer = attention + 3 * width * self.intermediate_size + norms
        return self.vocab_size * width * (1 if self.tied else 2) + self.depth * layer + width


_QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_SMOLLM2 = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
# The targets of the shipped recipes, as their public config.json files describe them: a laptop can plan for them.
_PUBLISHED: dict[str, dict[str, Any]] = {
    EMBEDDED_NAME: _SMOLLM2,
    "Qwen/Qwen3-4B": {**_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "Qwen/Qwen3-8B": {**_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
}


def target_facts(name: str, revision: str | None = None) -> TargetFacts | None:
    """Facts about the embedded target, a local folder, or a hub target that is cached here or widely known.

    Returns None for a hub target about which nothing is known here.

    Raises:
        UserError: a folder without a readable config.json, or one that describes no decoder-only transformer.
    """
    path = _config_file(name, revision)
    if path is None:
        known = _PUBLISHED.get(name)
        return _parse(known, "its published config") if known else None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"target.name = {name!r}: {path} could not be read ({error}), so replace it.") from error
    try:
        return _parse(tree, str(path))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"target.name = {name!r} is no decoder-only transformer ({path} lacks {error.args[0]!r}): choose another."
        ) from error


def target_is_here(name: str, revision: str | None = None) -> bool:
    """Whether the target needs no download: the embedded one, a folder, or a hub target in the local cache."""
    return name == EMBEDDED_NAME or _config_file(name, revision) is not None


def _config_file(name: str, revision: str | None) -> Path | None:
    """config.json of a target that is here already; None for a hub id that is not cached."""
    if name == EMBEDDED_NAME:
        path = converted_folder() / "config.json"
        return path if path.is_file() else None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "config.json"
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise UserError(f"target.name = {name!r} does not exist: give {EMBEDDED_NAME!r}, a hub id or a folder.")
    return _cached_config(name, revision)


def _cached_config(name: str, revision: str | None) -> Path | None:
    """config.json of a hub target in the local cache, whose folders are `models--org--name/snapshots/COMMIT`."""
    repository = _hub_cache() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    path = repository / "snapshots" / (commit or "main") / "config.json"
    return path if path.is_file() else None


def _hub_cache() -> Path:
    """Where the hub's client keeps downloads, from the variables it obeys."""
    if explicit := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{base}/huggingface").expanduser() / "hub"


def _parse(tree: dict[str, Any], origin: str) -> TargetFacts:
    tree = tree.get("text_config") or tree  # targets that also see images keep the decoder's settings inside
    heads, hidden = tree["num_attention_heads"], tree["hidden_size"]
    special = []
    for role in ("eos", "pad", "bos"):
        ids = tree.get(f"{role}_token_id")
        special += [(role, i) for i in (ids if isinstance(ids, list) else [ids]) if i is not None]
    return TargetFacts(
        origin=origin,
        depth=tree["num_hidden_layers"],
        hidden_size=hidden,
        # Experts make the width of a layer's MLP more than one number.
        intermediate_size=None if {"num_experts", "num_local_experts"} & tree.keys() else tree.get("intermediate_size"),
        heads=heads,
        kv_heads=tree.get("num_key_value_heads") or heads,
        head_dim=tree.get("head_dim") or hidden // heads,
        vocab_size=tree["vocab_size"],
        max_length=tree.get("max_position_embeddings"),
        tied=tree.get("tie_word_embeddings", False),
        head_norms=tree.get("model_type", "").startswith("qwen3"),
        special_ids=tuple(special),
    )
