"""Contradictions within the `online` section, found by looking at the config alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dflash.complaints import Complaint

if TYPE_CHECKING:
    from dflash.config import TrainConfig

SPARE_TOKENS = 8  # SGLang refuses prompts of more than its context length minus seven


def online_contradictions(config: TrainConfig) -> Iterator[Complaint]:
    """What is wrong whatever the target and the machine; nothing where features do not come online."""
    if config.features.source != "online":
        return
    yield from _addresses(config)
    yield from _lengths(config)
    if config.online.servers is None:
        yield from _ports(config)
        if config.online.tensor_parallel > 1 and config.run.device == "cpu":
            yield Complaint(
                ("online.tensor_parallel", "run.device"),
                f"online.tensor_parallel = {config.online.tensor_parallel} spreads a server over GPUs, but run.device "
                "= 'cpu': remove it or set run.device=cuda.",
            )


def _addresses(config: TrainConfig) -> Iterator[Complaint]:
    online = config.online
    servers = online.servers or []
    strange = [address for address in servers if not re.fullmatch(r"https?://[^/\s:]+:\d+/?", address)]
    if strange:
        yield Complaint(
            ("online.servers",),
            f"online.servers names {strange[0]!r}, which is no address of a server: write it like "
            "http://127.0.0.1:30000.",
        )
    if len({address.rstrip("/") for address in servers}) < len(servers):
        yield Complaint(
            ("online.servers",), f"online.servers = {servers} names a server twice: remove the repetition."
        )
    if servers and online.master is None:
        yield Complaint(
            ("online.servers", "online.master"),
            "online.servers needs online.master, the store into which those servers write: `dflash serve-target` "
            "prints both.",
        )
    if online.master is not None and not re.fullmatch(r"[^/\s:]+:\d+", online.master):
        yield Complaint(
            ("online.master",),
            f"online.master = {online.master!r} is not of the form host:port: write it like 127.0.0.1:50051.",
        )


def _lengths(config: TrainConfig) -> Iterator[Complaint]:
    data, size = config.data, config.draft.block_size
    if data.min_supervised < size:
        yield Complaint(
            ("data.min_supervised", "draft.block_size", "features.source"),
            f"data.min_supervised = {data.min_supervised} would have answers captured and carried that fill no block "
            f"of draft.block_size = {size}: set data.min_supervised={size} or more, or remove it.",
        )
    needed = data.max_length + SPARE_TOKENS
    if config.online.servers is None and (config.online.context_length or needed) < needed:
        yield Complaint(
            ("online.context_length", "data.max_length"),
            f"online.context_length = {config.online.context_length} is too short for rows of data.max_length = "
            f"{data.max_length} tokens, which the servers would refuse: set it to {needed} or remove it.",
        )


def _ports(config: TrainConfig) -> Iterator[Complaint]:
    """The launcher's own ports have to differ, and to exist."""
    online = config.online
    last = online.port + online.num_servers - 1
    if last > 65535:
        yield Complaint(
            ("online.port", "online.num_servers"),
            f"online.port = {online.port} leaves no ports for {online.num_servers} servers: set it to "
            f"{65536 - online.num_servers} or less.",
        )
    own = {"online.metrics_port": online.metrics_port}
    if online.master is None:
        own["online.master_port"] = online.master_port
    for name, port in own.items():
        if online.port <= port <= last:
            yield Complaint(
                (name, "online.port", "online.num_servers"),
                f"{name} = {port} is the port of a server, which take {online.port} to {last}: choose another one.",
            )
    if online.master is None and online.master_port == online.metrics_port:
        yield Complaint(
            ("online.master_port", "online.metrics_port"),
            f"online.master_port = {online.master_port} is online.metrics_port as well: choose another one.",
        )
