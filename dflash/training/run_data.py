"""The rows of a run: what it trains on and what it holds out, split by conversation."""

import logging
import random
from dataclasses import dataclass

from dflash.config import TrainConfig
from dflash.data.load import load_conversations
from dflash.data.rows import Row, build_rows
from dflash.data.template import Rendered
from dflash.errors import UserError
from dflash.target import TargetModel
from dflash.training.run_folder import RunFolder
from dflash.training.world import World

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    training: list[Row]
    validation: list[Row]
    held_out: list[Rendered]  # the conversations behind `validation`


def load_run_data(config: TrainConfig, target: TargetModel, run: RunFolder, world: World) -> RunData:
    """Read, render and split the conversations that the config names; every rank gets the same.

    Raises:
        UserError: a source cannot be read, or too few usable conversations are left.
    """
    loaded = world.main_first(lambda: load_conversations(config.data, target.tokenizer, progress=world.is_main))
    rendered = loaded.rendered
    if loaded.rejects and world.is_main:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in loaded.reasons)
        _LOG.info("%d conversations are left out: %s.", len(loaded.rejects), reasons)
    size = config.data.validation_size
    if len(rendered) <= size:
        raise UserError(
            f"Only {len(rendered)} usable conversations in {', '.join(config.data.train)}: more than "
            f"data.validation_size = {size} are needed."
        )
    # Chosen once per run, so that data which grows later stays out of them.
    chosen = world.on_main(lambda: run.held_out_ids(lambda: _draw(rendered, size, config.run.seed)))
    names = set(chosen)
    held_out = [item for item in rendered if item.id in names]
    training = [item for item in rendered if item.id not in names]
    return RunData(_rows(training, config), _rows(held_out, config), held_out)


def _draw(rendered: list[Rendered], size: int, seed: int) -> list[str]:
    return [item.id for item in random.Random(seed).sample(rendered, size)]


def _rows(items: list[Rendered], config: TrainConfig) -> list[Row]:
    return build_rows(items, max_length=config.data.max_length, packing=config.data.packing)
