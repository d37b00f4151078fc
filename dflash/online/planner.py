"""What a pipeline on so many GPUs amounts to: split, store, time of an epoch. Pure arithmetic, told in docs/online.md.

Letters: s serving and t training GPUs, p, q tokens/s per serving and training GPU, l bytes/s that a rank reads, n
captured layers of E numbers of b bytes, S tokens of a conversation on average, M of a row at most, D documents that a
rank has in flight.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from dflash.config import TrainConfig
from dflash.errors import UserError
from dflash.online.rates import Rates, row_length
from dflash.online.split import Capacity, Split, best_split, splits
from dflash.online.store_size import document_bytes, needed_bytes, segment_bytes
from dflash.target_facts import TargetFacts
from dflash.training.estimate import steps_of

Bound = Literal["at most", "about", "exactly"]

_ENOUGH = 2  # requests of a server: one being prefilled, one that waits for it
_ALWAYS = ("prefill", "training", "link", "length")  # rates that count whether or not answers are regenerated
_AHEAD = 2  # documents that a rank keeps, or asks for, per request in flight (`OnlineFeatures`)


@dataclass(frozen=True)
class PipelinePlan:
    """A split of the GPUs and what follows from it. Bytes, seconds and tokens."""

    gpus: int
    server_gpus: int  # of each server
    rates: Rates
    bytes_per_token: int  # n * E * b
    split: Split
    splits: tuple[Split, ...]  # all that are possible
    alone_tokens_per_s: float  # the same GPUs without a pipeline, each doing both: g / (1/p + 1/q)
    link_use: float  # share of what all ranks could read
    store_bytes: int  # the least that the store must hold: t * D * M * n*E*b
    segment_bytes: int  # what each server lends
    host_bytes: int  # buffers of a rank, at most: 2 * D * M * n*E*b
    in_flight: int  # D
    in_flight_needed: int  # of each rank: two per server, and those on the way
    epoch_rows: int | None
    epoch_rows_are: Bound  # conversations that teach nothing are left out later; packed rows are estimated
    epoch_seconds: float | None
    run_rows: int | None
    run_rows_are: Bound
    run_seconds: float | None
    regenerate_seconds: float | None  # before the first step, where answers are regenerated
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan_pipeline(
    config: TrainConfig,
    facts: TargetFacts,
    rates: Rates,
    gpus: int,
    *,
    serving: int | None = None,
    conversations: int | None = None,
) -> PipelinePlan:
    """Plan for `gpus` GPUs, of which `serving` serve (None: whatever is fastest).

    `conversations` is how many there are to train on at most, None where that is not known.

    Raises:
        UserError: the GPUs cannot be divided that way.
    """
    size, width = config.online.tensor_parallel, document_bytes(config, facts) // config.data.max_length
    capacity = Capacity(rates.prefill.value, rates.training.value, rates.link.value / width)
    found = list(splits(gpus, capacity, server_gpus=size, ranks_fit=lambda ranks: ranks_fit(config, ranks)))
    chosen = best_split(found) if serving is None else next((s for s in found if s.serving == serving), None)
    if chosen is None:
        raise UserError(_impossible(config, gpus, serving, found))
    planned = _as_divided(config, chosen)
    servers, rate = chosen.serving // size, chosen.tokens_per_s
    length, packing = rates.length.value, config.data.packing
    per_row = max(1, config.data.max_length / length) if packing else 1  # conversations
    epoch_rows = conversations and math.ceil(conversations / per_row)
    epoch_rows_are: Bound = "about" if packing and not rates.length.is_assumed else "at most"
    steps = config.run.max_steps or steps_of(config.run.epochs, epoch_rows, config.run.batch_size)
    rows = steps and steps * config.run.batch_size
    regenerated = conversations if config.online.regenerate else None
    return PipelinePlan(
        gpus=gpus,
        server_gpus=size,
        rates=rates,
        bytes_per_token=width,
        split=chosen,
        splits=tuple(found),
        alone_tokens_per_s=gpus / (1 / rates.prefill.value + 1 / rates.training.value),
        link_use=rate * width / (chosen.training * rates.link.value),
        store_bytes=needed_bytes(planned, facts, chosen.training),
        segment_bytes=segment_bytes(planned, facts, chosen.training),
        host_bytes=_AHEAD * config.online.in_flight * document_bytes(config, facts),
        in_flight=config.online.in_flight,
        in_flight_needed=in_flight_needed(servers, chosen.training, rate * width / rates.link.value),
        epoch_rows=epoch_rows,
        epoch_rows_are=epoch_rows_are,
        epoch_seconds=conversations and conversations * length / rate,
        run_rows=rows,
        run_rows_are="exactly" if config.run.max_steps else epoch_rows_are,
        run_seconds=rows and rows * (row_length(config, length) / rate),
        regenerate_seconds=(
            regenerated and regenerated * rates.answer.value / (chosen.serving * rates.generation.value)
        ),
        notes=tuple(_notes(config, gpus, chosen, rates)),
    )


def in_flight_needed(servers: int, ranks: int, reading: float) -> int:
    """Documents that each rank has to have in flight: (2 * servers + reading) / ranks, rounded up.

    Two for each server, and those on their way from the store. Of these there are `reading` = rate * n*E*b / l by
    Little's law: rate / S documents a second, each of which takes S * n*E*b / l seconds.
    """
    return max(1, math.ceil((_ENOUGH * servers + reading) / ranks))


def ranks_fit(config: TrainConfig, ranks: int) -> bool:
    """Whether so many ranks can share the rows of a step, and the copies of a hybrid strategy."""
    if config.run.batch_size % (ranks * config.run.micro_batch_size):
        return False
    return config.parallel.strategy != "hybrid" or ranks % (config.parallel.shard_size or 1) == 0


def _as_divided(config: TrainConfig, chosen: Split) -> TrainConfig:
    """The config with as many servers as the split has."""
    servers = chosen.serving // config.online.tensor_parallel
    return config.model_copy(update={"online": config.online.model_copy(update={"num_servers": servers})})


def _impossible(config: TrainConfig, gpus: int, serving: int | None, found: Sequence[Split]) -> str:
    size = config.online.tensor_parallel
    if serving is not None and found:
        return (
            f"Of {gpus} GPUs, {serving} cannot serve with online.tensor_parallel = {size}: choose one of "
            f"{', '.join(str(one.serving) for one in found)}."
        )
    return (
        f"{gpus} GPUs cannot be divided into servers of online.tensor_parallel = {size} GPUs and ranks of which each "
        f"trains at least run.micro_batch_size = {config.run.micro_batch_size} of run.batch_size = "
        f"{config.run.batch_size} rows: give more GPUs."
    )


def _notes(config: TrainConfig, gpus: int, chosen: Split, rates: Rates) -> Iterator[str]:
    counting = [field.name for field in fields(rates) if config.online.regenerate or field.name in _ALWAYS]
    assumed = [name for name in counting if getattr(rates, name).is_assumed]
    if assumed:
        yield f"Neither measured nor stated, only assumed: {', '.join(assumed)}. A short run with --run measures most."
    if config.data.packing:
        yield (
            "With data.packing, an epoch's rows are estimated as conversations x tokens of one / data.max_length; "
            f"tokens of one are {rates.length.origin}."
        )
    if chosen.limit == "link":
        yield "The way from the store limits this split: a faster link would help more than another GPU."
    online, servers = config.online, chosen.serving // config.online.tensor_parallel
    idle = gpus - chosen.serving - chosen.training
    if idle:
        ranks, each = chosen.training + idle, config.run.micro_batch_size
        even = math.ceil(config.run.batch_size / (ranks * each)) * ranks * each
        yield (
            f"{idle} GPU{'s' * (idle > 1)} would have nothing to do: run.batch_size = {config.run.batch_size} cannot "
            f"be shared by {ranks} ranks; {even} can."
        )
    settings = [f"online.num_servers={servers}"] if online.num_servers != servers else []
    # Left out, it is one rank for each GPU that no server has.
    if (online.trainers or chosen.training + idle) != chosen.training:
        settings.append(f"online.trainers={chosen.training}")
    if settings and online.servers is None:
        yield f"For this split set {' '.join(settings)}."
