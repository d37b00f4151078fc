"""What a run measures of its draft between steps: the loss on held-out rows, and tau by really decoding.

Once any rank is asked to stop, both end early on all of them and give nothing: part of a measurement would pass for
the whole.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from dflash.config import TrainConfig
from dflash.data.rows import Row
from dflash.features.micro_batch import MicroBatch
from dflash.model.draft import DFlashDraft
from dflash.objectives.cross_entropy import BlockStatistics
from dflash.target import TargetModel
from dflash.training.decoded_tau import DecodedTau, prompts_for
from dflash.training.ema import WeightAverage
from dflash.training.export import DraftExport
from dflash.training.order import row_generators, validation_portions
from dflash.training.run_data import RunData
from dflash.training.step import DraftStep, pool_over_ranks
from dflash.training.world import World

VALIDATION, DECODE = "validation", "decode"  # kinds of records in metrics.jsonl


class Measurements:
    """Every rank calls the same methods in the same order."""

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        target: TargetModel,
        world: World,
        *,
        draft: DFlashDraft,
        average: WeightAverage | None,
        step: DraftStep,
        prepare: Callable[[Sequence[Row]], MicroBatch],
        asked_to_stop: Callable[[], bool],
    ) -> None:
        """`average`: measured in place of the weights, where the run keeps one. `asked_to_stop`: this rank alone.

        Raises:
            UserError: there are no prompts to decode, though the config asks for it.
        """
        self._config, self._data, self._world = config, data, world
        self._draft, self._average = draft, average
        self._step, self._prepare, self._asked_to_stop = step, prepare, asked_to_stop
        self._decoding: DecodedTau | None = None
        if config.metrics.decode_every is not None:
            self._decoding = DecodedTau(config.metrics, target, prompts_for(config.metrics, target, data.held_out))

    def due(self, step: int, last: bool) -> list[str]:
        """Kinds of what is to be measured behind a step, in order; behind the last one, all there is."""
        metrics = self._config.metrics
        kinds = [VALIDATION] if last or step % metrics.validate_every == 0 else []
        if self._decoding is not None and (last or step % metrics.decode_every == 0):
            kinds.append(DECODE)
        return kinds

    def take(self, kind: str) -> dict[str, Any] | None:
        """The values for one record; None when a request to stop came in between."""
        return self._validate() if kind == VALIDATION else self._decode()

    @torch.no_grad()
    def _validate(self) -> dict[str, Any] | None:
        """Statistics on the held-out rows, with anchors that are the same every time."""
        run, world = self._config.run, self._world
        pooled: BlockStatistics | None = None
        portions = validation_portions(self._data.validation, run.micro_batch_size, world.rank, world.size)
        with self._average.applied() if self._average else nullcontext():
            for portion, counts in portions:
                if world.any(self._asked_to_stop()):
                    return None
                generators = row_generators(run.seed, VALIDATION, portion.positions)
                _, statistics = self._step(self._prepare(portion.rows), generators)
                if not counts:
                    statistics = BlockStatistics(*(0 * values for values in statistics.tensors()))
                pooled = statistics if pooled is None else pooled + statistics
        return pool_over_ranks(pooled, (), world)[0].summary()

    def _decode(self) -> dict[str, Any] | None:
        """Decoded tau on rank 0; the others wait for it at the end."""
        export = DraftExport.of(self._draft, self._average, self._world)

        def measure() -> dict[str, Any] | None:
            measured = self._decoding.measure(export.build(), hurry=self._asked_to_stop)
            return None if self._asked_to_stop() else measured

        return self._world.on_main(measure)
