"""Features read back from a cache that `dflash capture` wrote; the target's layers are not needed."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from safetensors import SafetensorError, safe_open

from dflash.data.rows import Row
from dflash.errors import UserError
from dflash.features.assembly import assemble
from dflash.features.cache_folder import CacheFolder, checksum
from dflash.features.identity import FeatureIdentity, document_key

_OPEN_SHARDS = 128


class CachedFeatures:
    """Reads documents from memory-mapped shards: only their own bytes, each time verified by its checksum."""

    def __init__(self, folder: CacheFolder, identity: FeatureIdentity, rows: Iterable[Row] = ()) -> None:
        """Open the cache for a run whose features have this identity, checking for every document of `rows`.

        Raises:
            UserError: the cache was captured with other settings, is damaged or incomplete; says what mends it.
        """
        self._folder, self._identity = folder, identity
        if difference := folder.identity.difference(identity):
            raise UserError(
                f"Feature cache {str(folder.path)!r} does not fit this run: {difference}; capture this run's features "
                "with `dflash capture CONFIG --out ANOTHER_DIR` and set features.cache to that folder."
            )
        self._entries = folder.entries()
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open)
        self._require(rows)

    def __call__(self, rows: Sequence[Row], *, length: int | None = None) -> torch.Tensor:
        """[B, S, n*E] on the CPU, in the dtype of the target that captured it; S is the longest row, or `length`.

        Raises:
            UserError: a document is not in the cache, or its shard is damaged.
        """
        documents = (self._read(id_, tokens) for row in rows for id_, tokens in _documents(row))
        return assemble(rows, documents, length)

    def close(self) -> None:
        """Unmap the shards."""
        self._shard.cache_clear()

    def _require(self, rows: Iterable[Row]) -> None:
        missing = [
            id_ for row in rows for id_, tokens in _documents(row) if document_key(tokens) not in self._entries
        ]
        if missing:
            raise self._incomplete(missing)

    def _incomplete(self, missing: Sequence[str]) -> UserError:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return UserError(
            f"Feature cache {str(self._folder.path)!r} lacks conversation {missing[0]!r}{others} of this run: "
            f"`dflash capture CONFIG --out {self._folder.path}` with this run's config adds what is missing."
        )

    def _read(self, id_: str, tokens: Sequence[int]) -> torch.Tensor:
        key = document_key(tokens)
        entry = self._entries.get(key)
        if entry is None:
            raise self._incomplete([id_])
        try:
            features = self._shard(entry.shard).get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise self._folder.damaged(entry.shard) from error
        expected = (entry.length, self._identity.width)
        if features.shape != expected or str(features.dtype) != f"torch.{self._identity.dtype}":
            raise self._folder.damaged(entry.shard)
        if checksum(features) != entry.checksum:
            raise self._folder.damaged(entry.shard)
        return features

    def _open(self, number: int):
        return safe_open(self._folder.shard(number), framework="pt")


def _documents(row: Row) -> Iterable[tuple[str, list[int]]]:
    return zip(row.ids, row.documents, strict=True)
