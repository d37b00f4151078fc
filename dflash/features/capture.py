"""Filling a feature cache: every conversation once through the target, shard by shard."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from dflash.config import TrainConfig
from dflash.data.template import Rendered
from dflash.errors import UserError
from dflash.features.cache_folder import CacheFolder
from dflash.features.capture_record import CaptureReport
from dflash.features.identity import FeatureIdentity, document_key
from dflash.features.in_process import InProcessFeatures
from dflash.target import TargetModel

SHARD_BYTES = 256 << 20
_FORWARD_TOKENS = 16 << 10  # at most this many, padding included, in one forward on a GPU
_HEADER_BYTES = 256  # of a shard and its index together, for one document


def capture(
    config: TrainConfig,
    target: TargetModel,
    layer_ids: Sequence[int],
    conversations: Sequence[Rendered],
    out: Path | str,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
) -> CaptureReport:
    """Write the features of every conversation that is not yet in the cache `out`; a shard in memory at a time.

    `announce` is told how much there is to do, before the first forward.

    Raises:
        UserError: `out` holds other things or is in use, the disk has not enough room or fills up. Complete shards
            stay.
    """
    identity = FeatureIdentity.of(config, target, layer_ids)
    folder = CacheFolder(out)
    report = CaptureReport(bytes_per_token=identity.bytes_per_token)
    try:
        with folder.opened_for_writing(identity):
            held = folder.entries()
            wanted = {document_key(item.input_ids): item for item in conversations}
            todo = {key: item for key, item in wanted.items() if key not in held}
            report.resumed = len(wanted) - len(todo)
            estimate = _check_room(folder.path, todo, identity)
            if announce and todo:
                announce(estimate)
            _fill(folder, todo, InProcessFeatures(target, layer_ids), shard_bytes, report, progress)
    except OSError as error:
        kept = len(list(folder.path.glob("shard-*.json")))
        raise UserError(
            f"Feature cache {str(folder.path)!r} could not be written: {error.strerror or error}; {kept} complete "
            "shards are kept: mend that, and the same command goes on."
        ) from error
    return report


def _fill(
    folder: CacheFolder,
    todo: dict[str, Rendered],
    source: InProcessFeatures,
    shard_bytes: int,
    report: CaptureReport,
    progress: bool,
) -> None:
    started = time.perf_counter()
    shard: dict[str, tuple[str, torch.Tensor]] = {}
    filled = 0
    total = sum(len(item.input_ids) for item in todo.values())
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not (progress and todo), desc="capture") as bar:
        for keys in _forwards(todo):
            documents = [todo[key].input_ids for key in keys]
            for key, features in zip(keys, source.of_documents(documents, _FORWARD_TOKENS), strict=True):
                size = len(features) * report.bytes_per_token
                if shard and filled + size > shard_bytes:
                    _write(folder, shard, report)
                    shard, filled = {}, 0
                shard[key] = (todo[key].id, features.cpu())
                filled += size
            bar.update(sum(map(len, documents)))
        if shard:
            _write(folder, shard, report)
    report.seconds = time.perf_counter() - started


def _write(folder: CacheFolder, shard: dict[str, tuple[str, torch.Tensor]], report: CaptureReport) -> None:
    report.bytes += folder.write_shard(shard)
    report.shards += 1
    report.documents += len(shard)
    report.tokens += sum(len(features) for _, features in shard.values())


def _forwards(todo: dict[str, Rendered]) -> Iterator[list[str]]:
    """Keys in order, in groups whose tokens fill a forward on a GPU."""
    group: list[str] = []
    tokens = 0
    for key, item in todo.items():
        if group and tokens + len(item.input_ids) > _FORWARD_TOKENS:
            yield group
            group, tokens = [], 0
        group.append(key)
        tokens += len(item.input_ids)
    if group:
        yield group


def _check_room(path: Path, todo: dict[str, Rendered], identity: FeatureIdentity) -> str:
    """The estimate in words; what the disk cannot take is refused before the first forward."""
    tokens = sum(len(item.input_ids) for item in todo.values())
    needed = tokens * identity.bytes_per_token + len(todo) * _HEADER_BYTES
    free = shutil.disk_usage(path).free
    if needed > free:
        raise UserError(
            f"The features of {len(todo)} conversations take {_gib(needed)}, and {str(path)!r} has {_gib(free)} free: "
            "make room, give another --out, or take fewer conversations (data.limit)."
        )
    return f"{len(todo)} conversations of {tokens} tokens to capture: {_gib(needed)} of {_gib(free)} free."


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
