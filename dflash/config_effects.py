"""Settings without effect in the chosen mode: refused when someone sets them, left out when a config is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dflash.complaints import Complaint
from dflash.config_online import OnlineConfig
from dflash.data.sources import is_file, is_jsonl
from dflash.embedded import EMBEDDED_NAME

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dflash.config import TrainConfig


@dataclass(frozen=True)
class IdleRule:
    """`settings` do nothing while `idle` holds; `why` says so, `instead` what would give them an effect."""

    settings: tuple[str, ...]
    idle: Callable[[TrainConfig], bool]
    why: str
    instead: str


# Settings of the servers, which are somebody else's business where online.servers names running ones.
OF_SERVERS = tuple(
    f"online.{name}"
    for name in (
        "num_servers",
        "tensor_parallel",
        "trainers",
        "port",
        "environment",
        "context_length",
        "chunked_prefill",
        "memory_fraction",
        "server_arguments",
        "master_port",
        "store_gib",
        "on_failure",
        "max_restarts",
        "start_seconds",
    )
)


def _online(config: TrainConfig) -> bool:
    return config.features.source == "online"


RULES = (
    IdleRule(
        ("target.revision",),
        lambda c: c.target.name == EMBEDDED_NAME,
        "the embedded target has one revision only",
        "name a hub target",
    ),
    IdleRule(
        ("data.subset", "data.split"),
        lambda c: all(is_file(source) for source in c.data.train),
        "data.train holds single files only",
        "name a data set",
    ),
    IdleRule(
        ("data.streaming",),
        lambda c: all(is_jsonl(source) for source in c.data.train),
        "data.train holds JSONL files only",
        "name a data set",
    ),
    IdleRule(
        ("data.length_grouping",),
        lambda c: c.data.packing,
        "data.packing already gives rows of one length",
        "set data.packing=false",
    ),
    IdleRule(
        ("features.cache",),
        lambda c: c.features.source != "cache",
        "features.source is not 'cache'",
        "set features.source=cache",
    ),
    IdleRule(
        tuple(f"online.{name}" for name in OnlineConfig.model_fields),
        lambda c: not _online(c),
        "features.source is not 'online'",
        "set features.source=online",
    ),
    IdleRule(
        OF_SERVERS,
        lambda c: _online(c) and c.online.servers is not None,
        "online.servers names servers that run already",
        "remove online.servers",
    ),
    IdleRule(
        ("online.master_port",),
        lambda c: _online(c) and c.online.servers is None and c.online.master is not None,
        "online.master names a master that runs already",
        "remove online.master",
    ),
    IdleRule(
        ("online.max_restarts",),
        lambda c: _online(c) and c.online.servers is None and c.online.on_failure == "stop",
        "online.on_failure 'stop' restarts nothing",
        "set online.on_failure=restart",
    ),
    IdleRule(
        ("online.rdma_devices",),
        lambda c: _online(c) and c.online.protocol != "rdma",
        "online.protocol is not 'rdma'",
        "set online.protocol=rdma",
    ),
    IdleRule(
        ("online.regenerate_temperature", "online.regenerate_tokens", "online.regenerate_in_flight"),
        lambda c: _online(c) and not c.online.regenerate,
        "online.regenerate is not set",
        "set online.regenerate=true",
    ),
    IdleRule(
        ("optimizer.min_lr",),
        lambda c: c.schedule.kind == "constant",
        "schedule.kind 'constant' never leaves optimizer.lr",
        "choose another schedule.kind",
    ),
    IdleRule(
        ("schedule.decay_ratio", "schedule.decay_style"),
        lambda c: c.schedule.kind != "wsd",
        "only schedule.kind 'wsd' has a decay of its own",
        "set schedule.kind=wsd",
    ),
    IdleRule(
        ("parallel.shard_size",),
        lambda c: c.parallel.strategy != "hybrid",
        "parallel.strategy is not 'hybrid'",
        "set parallel.strategy=hybrid",
    ),
    IdleRule(
        ("metrics.decode_prompts", "metrics.decode_count", "metrics.decode_tokens", "metrics.decode_seconds"),
        lambda c: c.metrics.decode_every is None,
        "metrics.decode_every is not set",
        "set metrics.decode_every",
    ),
    IdleRule(
        ("metrics.project",),
        lambda c: not {"wandb", "trackio"} & set(c.metrics.adapters),
        "metrics.adapters names neither wandb nor trackio",
        "add one of them",
    ),
)


def without_effect(config: TrainConfig) -> list[Complaint]:
    """Complaints about settings that were set, in the file or on the command line, and do nothing."""
    complaints = []
    for rule, setting in _idle(config):
        values, key = _place(config, setting)
        if key in values.model_fields_set and getattr(values, key) is not None:
            given = f"{setting} = {getattr(values, key)!r}"
            sentence = f"{given} has no effect, since {rule.why}: remove it, or {rule.instead}."
            complaints.append(Complaint((setting,), sentence))
    return complaints


def idle_defaults(config: TrainConfig) -> list[str]:
    """Settings that do nothing and have their default, so that a written config need not spell them out."""
    names = []
    for _, setting in _idle(config):
        values, key = _place(config, setting)
        if getattr(values, key) == type(values).model_fields[key].get_default(call_default_factory=True):
            names.append(setting)
    return names


def idle_reasons(config: TrainConfig) -> dict[str, str]:
    """Every setting that does nothing in this config, with the reason and what would give it an effect."""
    return {setting: f"No effect, since {rule.why}: {rule.instead}." for rule, setting in _idle(config)}


def _idle(config: TrainConfig) -> Iterator[tuple[IdleRule, str]]:
    for rule in RULES:
        if rule.idle(config):
            yield from ((rule, setting) for setting in rule.settings)


def _place(config: TrainConfig, setting: str) -> tuple[BaseModel, str]:
    """The section that holds a setting, and its key there."""
    section, _, key = setting.partition(".")
    return getattr(config, section), key
