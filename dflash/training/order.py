"""Which rows a rank trains on, and the random numbers that belong to each: functions of the position in the run.

Position p counts the rows that a run consumes, step after step. Which row stands there and which anchors it draws
depend on the seed and on p alone, so one process and eight ranks train on the same blocks, and resuming is arithmetic.
The size of micro-batches changes none of that; but `objective.candidates` are drawn once for all rows of a micro-batch,
by the position of its first row, so with another size other candidates are drawn.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dflash.config import TrainConfig
from dflash.data.rows import Row
from dflash.data.sampler import ShuffledSampler
from dflash.errors import UserError
from dflash.training.estimate import steps_of


@dataclass(frozen=True)
class Portion:
    """The rows of one micro-batch and their positions."""

    positions: range
    rows: list[Row]


class DataOrder:
    """The training rows of one rank, in the order in which it trains on them."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig, rank: int, world_size: int) -> None:
        """
        Raises:
            UserError: the rows of a step cannot be shared evenly.
        """
        self._rows, self._config = rows, config
        settings = config.run
        each = settings.micro_batch_size * world_size
        if settings.batch_size % each:
            raise UserError(
                f"run.batch_size = {settings.batch_size} is no multiple of run.micro_batch_size = "
                f"{settings.micro_batch_size} times {world_size} ranks: set run.batch_size="
                f"{-(-settings.batch_size // each) * each}."
            )
        self._firsts = range(rank * settings.micro_batch_size, settings.batch_size, each)

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank in a step."""
        return len(self._firsts)

    def portions(self, first: int) -> Iterator[Portion]:
        """This rank's micro-batches from position `first` on, the beginning of a step; without end."""
        sampler = self._sampler()
        while True:
            for offset in self._firsts:
                start = first + offset
                positions = range(start, start + self._config.run.micro_batch_size)
                yield Portion(positions, [self._rows[sampler[p]] for p in positions])
            first += self._config.run.batch_size

    def conversations(self, first: int) -> list[str]:
        """Ids of all conversations in the step that begins at position `first`, over all ranks."""
        sampler = self._sampler()
        return [name for i in range(self._config.run.batch_size) for name in self._rows[sampler[first + i]].ids]

    def _sampler(self) -> ShuffledSampler:
        grouped = self._config.data.length_grouping
        return ShuffledSampler(
            len(self._rows),
            self._config.run.seed,
            lengths=list(map(len, self._rows)) if grouped else None,
            rows_per_step=self._config.run.batch_size if grouped else None,
        )


def validation_portions(rows: Sequence[Row], size: int, rank: int, world_size: int) -> list[tuple[Portion, bool]]:
    """This rank's micro-batches of the held-out rows, and whether each counts.

    Sharded forwards are joint work: a rank that runs out of rows joins in with the first ones, which then do not count.
    """
    found = []
    for first in range(rank * size, len(rows) + rank * size, size * world_size):
        counts = first < len(rows)
        positions = range(first, min(first + size, len(rows))) if counts else range(min(size, len(rows)))
        found.append((Portion(positions, list(rows[positions.start : positions.stop])), counts))
    return found


def row_generators(seed: int, purpose: str, positions: range) -> list[torch.Generator]:
    """One generator per row, seeded by what it is for and by the row's position.

    They are on the CPU, which draws one number after the other: a row's anchors then depend neither on the device nor
    on how far the row is padded.
    """
    return [torch.Generator().manual_seed(_mixed(f"{purpose} {seed} {p}")) for p in positions]


def total_steps(config: TrainConfig, num_rows: int) -> int:
    """Optimizer steps of the run: `run.max_steps`, or as many as `run.epochs` passes over the rows take."""
    if config.run.max_steps is not None:
        return config.run.max_steps
    return steps_of(config.run.epochs, num_rows, config.run.batch_size)


def _mixed(text: str) -> int:
    """Neighbouring positions must not give related numbers."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
