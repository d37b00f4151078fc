"""What a config amounts to, before anything is loaded: steps, tokens, learning rates, weights, memory, disk.

Pure functions of the config and a few facts, for `dflash train --dry-run` and for the workbench alike.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from dflash.config import TrainConfig
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import DraftShape, draft_shape
from dflash.training.memory import MemoryPart, memory_per_rank, optimizer_bytes
from dflash.training.schedule import RatePoint, corners


@dataclass(frozen=True)
class Estimate:
    """Numbers derived from a config; None where they hang on something that is not known here."""

    world_size: int
    accumulation: int  # micro-batches per rank and step
    conversations: int | None  # at most, the held-out ones not counted
    steps: int | None  # at most, when run.epochs decides
    rows: int | None  # over the whole run
    tokens: int | None  # at most: every row as long as data.max_length
    rates: tuple[RatePoint, ...]
    draft_parameters: int | None
    memory: tuple[MemoryPart, ...]  # per rank; empty when the target is unknown
    checkpoint_bytes: int | None
    disk_bytes: int | None  # most that checkpoints take at once

    @property
    def device_bytes(self) -> int:
        """Memory of each rank's device, all parts together."""
        return sum(part.bytes for part in self.memory if not part.on_host)

    @property
    def host_bytes(self) -> int:
        """Host memory per rank for what is offloaded."""
        return sum(part.bytes for part in self.memory if part.on_host)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "device_bytes": self.device_bytes, "host_bytes": self.host_bytes}


def estimate(
    config: TrainConfig,
    facts: TargetFacts | None,
    world_size: int,
    *,
    conversations: int | None = None,
    device_type: str = "cpu",
) -> Estimate:
    """Derive everything; `conversations` is how many data.train holds at most, where that could be counted."""
    if conversations is not None:
        conversations = max(0, conversations - config.data.validation_size)
    steps = config.run.max_steps or steps_of(config.run.epochs, conversations, config.run.batch_size)
    shape = draft_shape(config, facts)
    saved = None if shape is None else checkpoint_bytes(config, shape)
    rows = None if steps is None else steps * config.run.batch_size
    optimizer = config.optimizer
    return Estimate(
        world_size=world_size,
        accumulation=accumulation(config, world_size),
        conversations=conversations,
        steps=steps,
        rows=rows,
        tokens=None if rows is None else rows * config.data.max_length,
        rates=corners(steps, optimizer.lr, optimizer.min_lr, config.schedule) if steps else (),
        draft_parameters=None if shape is None else shape.parameters,
        memory=tuple(memory_per_rank(config, facts, shape, world_size, device_type)) if facts and shape else (),
        checkpoint_bytes=saved,
        disk_bytes=None if saved is None else (config.checkpoint.keep + 2) * saved,
    )


def accumulation(config: TrainConfig, world_size: int) -> int:
    """Micro-batches that each rank puts through before a step: batch_size / (world_size * micro_batch_size)."""
    return max(1, config.run.batch_size // (world_size * config.run.micro_batch_size))


def steps_of(epochs: float | None, rows: int | None, batch_size: int) -> int | None:
    """Optimizer steps that `epochs` passes over `rows` rows take, the last one filled up from the next pass."""
    return None if epochs is None or not rows else max(1, math.ceil(round(epochs * rows) / batch_size))


def checkpoint_bytes(config: TrainConfig, shape: DraftShape) -> int:
    """Bytes of one checkpoint: fp32 weights 4P, optimizer state, bf16 draft 2P, and the average of the weights 4P.

    On disk there are at most checkpoint.keep newest ones, the best one, and the one that is being written.
    """
    averaged = 4 * shape.parameters if config.optimizer.ema_decay else 0
    return 6 * shape.parameters + optimizer_bytes(config, shape) + averaged
