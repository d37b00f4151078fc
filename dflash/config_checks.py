"""Settings that contradict one another, found by looking at the config alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dflash.complaints import Complaint
from dflash.data.sources import is_jsonl
from dflash.config_online_checks import online_contradictions
from dflash.model.draft_types import DRAFT_TYPES

if TYPE_CHECKING:
    from dflash.config import TrainConfig


def contradictions(config: TrainConfig) -> list[Complaint]:
    """Every contradiction within the config; what depends on the target or the machine is judged elsewhere."""
    return [complaint for check in _CHECKS for complaint in check(config)]


def _draft(config: TrainConfig) -> Iterator[Complaint]:
    draft, ids = config.draft, config.draft.target_layer_ids
    if draft.type not in DRAFT_TYPES:
        yield Complaint(
            ("draft.type",),
            f"draft.type = {draft.type!r} is not supported: choose {' or '.join(map(repr, DRAFT_TYPES))}.",
        )
    if ids is not None and (min(ids) < 0 or ids != sorted(set(ids))):
        # A serving engine collects features from the bottom up: another order would feed `fc` the wrong columns.
        proper = sorted({i for i in ids if i >= 0})
        yield Complaint(
            ("draft.target_layer_ids",),
            f"draft.target_layer_ids = {ids} must be distinct, 0-based and ascending, the order in which engines "
            f"capture layers: write {proper or '[0, 1]'}.",
        )


def _rows(config: TrainConfig) -> Iterator[Complaint]:
    data, size = config.data, config.draft.block_size
    if size > data.max_length:
        yield Complaint(
            ("draft.block_size", "data.max_length"),
            f"draft.block_size = {size} exceeds data.max_length = {data.max_length}, so the last slots never get a "
            "label: shorten the block or lengthen the rows.",
        )
    if data.min_supervised >= data.max_length:
        yield Complaint(
            ("data.min_supervised", "data.max_length"),
            f"data.min_supervised = {data.min_supervised} leaves every conversation out, since a row holds "
            f"data.max_length = {data.max_length} tokens with the prompt: lower it, one block is {size} tokens.",
        )
    if config.blocks.num_anchors > data.max_length:
        yield Complaint(
            ("blocks.num_anchors", "data.max_length"),
            f"blocks.num_anchors = {config.blocks.num_anchors} exceeds the positions of a row, data.max_length = "
            f"{data.max_length}: set blocks.num_anchors={data.max_length} or less.",
        )


def _data(config: TrainConfig) -> Iterator[Complaint]:
    data = config.data
    for source in sorted({s for s in data.train if data.train.count(s) > 1}):
        yield Complaint(
            ("data.train",), f"data.train = {data.train} names {source!r} more than once: remove the repetition."
        )
    if data.streaming and data.limit is None and not all(map(is_jsonl, data.train)):
        yield Complaint(
            ("data.streaming", "data.limit"),
            "data.streaming = True without data.limit would read the data set to its end before the first step: set "
            "data.limit to the conversations you want, or remove data.streaming.",
        )
    most = data.limit * len(data.train) if data.limit else None
    if most is not None and most <= data.validation_size:
        yield Complaint(
            ("data.limit", "data.validation_size", "data.train"),
            f"data.limit = {data.limit} gives at most {most} conversations, all of which data.validation_size = "
            f"{data.validation_size} would hold out: raise the one or lower the other.",
        )


def _features(config: TrainConfig) -> Iterator[Complaint]:
    if config.features.source == "cache" and config.features.cache is None:
        yield Complaint(
            ("features.source", "features.cache"),
            "features.source = 'cache' needs features.cache: name the folder that `dflash capture` wrote.",
        )


def _rates(config: TrainConfig) -> Iterator[Complaint]:
    optimizer, schedule = config.optimizer, config.schedule
    if schedule.kind != "constant" and optimizer.min_lr > optimizer.lr:
        yield Complaint(
            ("optimizer.min_lr", "optimizer.lr", "schedule.kind"),
            f"optimizer.min_lr = {optimizer.min_lr:g} is above optimizer.lr = {optimizer.lr:g}: lower min_lr.",
        )
    if schedule.kind == "wsd" and schedule.decay_ratio == 0:
        yield Complaint(
            ("schedule.kind", "schedule.decay_ratio"),
            "schedule.decay_ratio = 0 leaves schedule.kind 'wsd' without its decay: give a ratio above 0 or choose "
            "schedule.kind=constant.",
        )


def _precision(config: TrainConfig) -> Iterator[Complaint]:
    if config.target.dtype == "float16" and config.run.autocast:
        yield Complaint(
            ("target.dtype", "run.autocast"),
            "target.dtype = 'float16' beside run.autocast = true would mix fp16 features with bf16 products: set "
            "target.dtype=bfloat16.",
        )
    if config.parallel.reduce_dtype == "bfloat16" and not config.run.autocast:
        yield Complaint(
            ("parallel.reduce_dtype", "run.autocast"),
            "parallel.reduce_dtype = 'bfloat16' would round the gradients of a draft that run.autocast = false keeps "
            "in fp32: set parallel.reduce_dtype=float32 or run.autocast=true.",
        )


def _device(config: TrainConfig) -> Iterator[Complaint]:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", config.run.device):
        yield Complaint(
            ("run.device",),
            f"run.device = {config.run.device!r} is no device to train on: choose auto, cpu, cuda or cuda:0.",
        )
    if config.blocks.attention == "flex" and config.run.device == "cpu":
        yield Complaint(
            ("blocks.attention", "run.device"),
            "blocks.attention = 'flex' has no backward pass with run.device = 'cpu': set blocks.attention=split.",
        )


def _metrics(config: TrainConfig) -> Iterator[Complaint]:
    metrics, held_out = config.metrics, config.data.validation_size
    if len(set(metrics.adapters)) < len(metrics.adapters):
        yield Complaint(
            ("metrics.adapters",), f"metrics.adapters = {metrics.adapters} names one twice: remove the repetition."
        )
    if metrics.decode_every is not None and metrics.decode_prompts is None and metrics.decode_count > held_out:
        yield Complaint(
            ("metrics.decode_count", "data.validation_size"),
            f"metrics.decode_count = {metrics.decode_count} exceeds the held-out conversations, data.validation_size = "
            f"{held_out}: lower it or name a prompt file in metrics.decode_prompts.",
        )


_CHECKS: tuple[Callable[[TrainConfig], Iterator[Complaint]], ...] = (
    _draft,
    _rows,
    _data,
    _features,
    online_contradictions,
    _rates,
    _precision,
    _device,
    _metrics,
)
