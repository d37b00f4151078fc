"""The one interface behind which target features come from the trainer's own process, from disk or from servers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch

from dflash.config import FeaturesConfig, TrainConfig
from dflash.data.rows import Row
from dflash.errors import UserError
from dflash.features.cache_folder import CacheFolder
from dflash.features.cached import CachedFeatures
from dflash.features.identity import FeatureIdentity
from dflash.features.in_process import InProcessFeatures
from dflash.target import TargetModel

if TYPE_CHECKING:
    from dflash.training.world import World

T = TypeVar("T")
_AHEAD = 2  # one micro-batch is being prepared while another one waits


class FeatureSource(Protocol):
    """Gives the target's hidden states for rows of tokens."""

    def __call__(self, rows: Sequence[Row], *, length: int | None = None) -> torch.Tensor:
        """[B, S, n*E]: the captured layers side by side, zeros on padding, S the longest row or `length`.

        Every document of a packed row is seen on its own.
        """

    def close(self) -> None:
        """Give back files and connections."""


@runtime_checkable
class LookaheadSource(FeatureSource, Protocol):
    """A source that fetches features from elsewhere, and so wants to know the coming rows early."""

    def ahead(self, items: Iterable[T], rows_of: Callable[[T], Sequence[Row]]) -> Iterator[T]:
        """The same items in the same order; the rows of the coming ones are being fetched meanwhile."""


def looking_ahead(source: FeatureSource, items: Iterable[T], rows_of: Callable[[T], Sequence[Row]]) -> Iterator[T]:
    """The items, unchanged and in order, on their way to `source`: one that can fetches what they will need."""
    return source.ahead(items, rows_of) if isinstance(source, LookaheadSource) else iter(items)


def open_source(
    config: TrainConfig,
    target: TargetModel,
    layer_ids: Sequence[int],
    rows: Iterable[Row] = (),
    *,
    world: "World | None" = None,
    run_dir: Path | None = None,
) -> FeatureSource:
    """The source that `features.source` names; a cache is checked for every document of `rows` right away.

    Unless it is "in_process" the target may have been loaded without its layers. What "online" puts into the store
    belongs to a rank (`world`) of a run (`run_dir`); the others need neither.

    Raises:
        UserError: the cache does not fit the run, is damaged or incomplete; a server or the store cannot be reached or
            does not fit it; the sentence says what mends it.
        ValueError: "online" outside a run.
    """
    if config.features.source == "in_process":
        return InProcessFeatures(target, layer_ids)
    if config.features.source == "online":
        if world is None or run_dir is None:
            raise ValueError("online features belong to a rank of a run")
        from dflash.online.opening import open_online

        return open_online(config, target, layer_ids, world, run_dir)
    if config.features.cache is None:
        raise UserError("features.source = 'cache' needs features.cache: set it to a folder of `dflash capture`.")
    identity = FeatureIdentity.of(config, target, layer_ids)
    return CachedFeatures(CacheFolder(config.features.cache), identity, rows)


def prefetch_depth(config: FeaturesConfig, device: torch.device | str) -> int:
    """Micro-batches to prepare ahead: as configured, else none where the target would take cores from the draft."""
    if config.prefetch is not None:
        return config.prefetch
    return 0 if config.source == "in_process" and torch.device(device).type == "cpu" else _AHEAD
