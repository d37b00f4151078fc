"""The rows of a run: what it trains on and what it holds out, split by conversation."""

import hashlib
import logging
import random
from array import array
from collections.abc import Collection
from dataclasses import dataclass

from dflash.config import DataConfig, TrainConfig
from dflash.data.load import load_conversations
from dflash.data.rendered_file import read_rendered, write_rendered
from dflash.data.rows import Row, build_rows
from dflash.data.template import Rendered
from dflash.errors import UserError
from dflash.online.regenerated_data import training_data
from dflash.target import TargetModel
from dflash.training.run_folder import RunFolder
from dflash.training.world import World

_LOG = logging.getLogger(__name__)
_RENDERED_FILE = ".rendered.npz"  # between the ranks, while a run begins


@dataclass(frozen=True)
class RunData:
    training: list[Row]
    validation: list[Row]
    held_out: list[Rendered]  # the conversations behind `validation`


def load_run_data(config: TrainConfig, target: TargetModel, run: RunFolder, world: World) -> RunData:
    """Read, render and split the conversations that the config names; every rank gets the same.

    A conversation that reads like a held-out one under another id is neither trained on nor held out a second time.

    Raises:
        UserError: a source cannot be read, too few usable conversations are left, or those that the run holds out are
            not among them.
    """
    data = training_data(config, target.tokenizer, run, world)
    rendered = _rendered_once(data, target.tokenizer, run, world)
    texts = [_text(item) for item in rendered]
    distinct = {text: item.id for text, item in zip(reversed(texts), reversed(rendered), strict=True)}
    size, sources = config.data.validation_size, ", ".join(config.data.train)
    if len(distinct) <= size:
        raise UserError(
            f"Only {len(distinct)} usable conversations that differ are in {sources}: more than data.validation_size = "
            f"{size} are needed."
        )
    # Chosen once per run, so that data which grows later stays out of them.
    candidates = [*reversed(distinct.values())]
    chosen = world.on_main(lambda: run.held_out_ids(lambda: random.Random(config.run.seed).sample(candidates, size)))
    names = set(chosen)
    held_out = [item for item in rendered if item.id in names]
    _check_held_out(held_out, names, config, run)
    seen = {text for text, item in zip(texts, rendered, strict=True) if item.id in names}
    training = [item for text, item in zip(texts, rendered, strict=True) if text not in seen]
    twins = len(rendered) - len(held_out) - len(training)
    if twins and world.is_main:
        _LOG.info("%d conversations are not trained on: they read like held-out ones.", twins)
    return RunData(_rows(training, config), _rows(held_out, config), held_out)


def _rendered_once(data: DataConfig, tokenizer, run: RunFolder, world: World) -> list[Rendered]:
    """The usable conversations: the first rank renders them, the others read its result from the run's folder.

    Rendering is most of the time before a run's first step; reading takes a small part of that.
    """
    path = run.path / _RENDERED_FILE
    mine: list[Rendered] = []

    def render() -> None:
        loaded = load_conversations(data, tokenizer, progress=True)
        if loaded.rejects:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in loaded.reasons)
            _LOG.info("%d conversations are left out: %s.", len(loaded.rejects), reasons)
        mine.extend(loaded.rendered)
        if world.size == 1:
            return
        try:
            write_rendered(path, mine)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{path} could not be written: {error.strerror or error}; free some space.") from error

    world.on_main_for_long(render)
    if world.size == 1:
        return mine
    try:
        if not all(world.gather(path.is_file())):
            raise UserError(f"Not every rank sees {str(path)!r}: put the run folder on a disk that all machines share.")
        return mine if world.is_main else read_rendered(path)
    finally:
        world.barrier()
        if world.is_main:
            path.unlink(missing_ok=True)


def digest(rows: Collection[Row]) -> str:
    """What tells one set of training rows from another: ids and tokens, in order."""
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        found.update("\0".join(row.ids).encode() + b"\n")
        found.update(array("q", row.input_ids).tobytes())
    return found.hexdigest()


def _check_held_out(held_out: list[Rendered], names: Collection[str], config: TrainConfig, run: RunFolder) -> None:
    """The ids were chosen when the run began; its data and its settings may have changed since."""
    size = config.data.validation_size
    if len(names) != size:
        raise UserError(
            f"data.validation_size = {size}, but run {str(run.path)!r} holds out {len(names)} conversations since it "
            f"began: set data.validation_size={len(names)}, or start a new run."
        )
    if len(held_out) != size:
        raise UserError(
            f"Run {str(run.path)!r} holds out {size} conversations (validation_ids.json), of which "
            f"{', '.join(config.data.train)} has {len(held_out)}: resume with the data that it began with, or start a "
            "new run."
        )


def _text(item: Rendered) -> bytes:
    """Fit for a set: a list of tokens takes many times the memory."""
    return hashlib.blake2b(array("q", item.input_ids).tobytes(), digest_size=16).digest()


def _rows(items: list[Rendered], config: TrainConfig) -> list[Row]:
    return build_rows(items, max_length=config.data.max_length, packing=config.data.packing)
