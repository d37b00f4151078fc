"""Can this run go online, here and now? Everything is looked at before the first server starts."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from dflash.complaints import Complaint
from dflash.config import TrainConfig
from dflash.config_online_checks import SPARE_TOKENS
from dflash.online.deployment import Deployment, is_started_here
from dflash.online.gpus import visible_gpus
from dflash.online.ports import answers, why_unusable
from dflash.online.store_errors import INSTALL
from dflash.target_facts import TargetFacts


def online_target_complaints(
    config: TrainConfig, facts: TargetFacts, deployment: Deployment | None
) -> Iterator[Complaint]:
    """What the target makes impossible for servers that are started here."""
    if not is_started_here(config):
        return
    most = None if facts.max_length is None else facts.max_length - SPARE_TOKENS
    if most is not None and most < config.data.max_length <= facts.max_length:
        yield Complaint(
            ("data.max_length", "features.source", "target"),
            f"data.max_length = {config.data.max_length} leaves SGLang none of the {facts.max_length} positions of "
            f"target {config.target.name!r} that it keeps for itself: set data.max_length={most} or less.",
        )
    if deployment is not None and deployment.store_bytes < deployment.needed_bytes:
        online, need = config.online, deployment.needed_bytes
        each = need / online.num_servers / 2**30
        yield Complaint(
            ("online.store_gib", "online.in_flight", "online.num_servers"),
            f"online.store_gib = {online.store_gib:g} on {online.num_servers} server(s) is less than the "
            f"{need / 2**30:.4g} GiB that {deployment.ranks} rank(s) with online.in_flight = {online.in_flight} "
            f"documents of data.max_length = {config.data.max_length} tokens may have there at a time: set it to "
            f"{each * 1.005:.3g} or more, or lower online.in_flight.",
        )


def online_machine_complaints(config: TrainConfig, deployment: Deployment | None) -> Iterator[Complaint]:
    """What this machine lacks; `deployment` is what it has to start, if anything."""
    if importlib.util.find_spec("mooncake") is None:
        yield Complaint(("features.source",), f"features.source = 'online' needs Mooncake here: {INSTALL}.")
    if not is_started_here(config):
        yield from _unreachable(config)
    elif deployment is not None:
        yield from _gpus(config, deployment)
        yield from _ports(config, deployment)
        yield from _environment(deployment)
        yield from _memory(config, deployment)
    if config.online.servers is None and config.online.master and not answers(config.online.master):
        yield _no_master(config)


def _unreachable(config: TrainConfig) -> Iterator[Complaint]:
    online = config.online
    for address in online.servers or ():
        if not answers(address.partition("//")[2].rstrip("/"), timeout=3.0):
            yield Complaint(
                ("online.servers",),
                f"online.servers names {address}, where nothing answers: start it with `dflash serve-target`, or "
                "correct the address.",
            )
    if online.master and not answers(online.master, timeout=3.0):
        yield _no_master(config)


def _no_master(config: TrainConfig) -> Complaint:
    return Complaint(
        ("online.master",),
        f"online.master = {config.online.master!r}: nothing answers there; start a Mooncake master, or correct it.",
    )


def _gpus(config: TrainConfig, deployment: Deployment) -> Iterator[Complaint]:
    here, online = len(visible_gpus()), config.online
    if deployment.gpus > here:
        yield Complaint(
            ("online.num_servers", "online.tensor_parallel", "online.trainers", "run.device"),
            f"online.num_servers = {online.num_servers} times online.tensor_parallel = {online.tensor_parallel} and "
            f"{len(deployment.trainer_gpus)} training rank(s) take {deployment.gpus} GPUs, but {here} are visible "
            "here: lower them, or set run.device=cpu.",
        )


def _ports(config: TrainConfig, deployment: Deployment) -> Iterator[Complaint]:
    online, host = config.online, config.online.host or "127.0.0.1"
    if reason := why_unusable(host, 0):  # no port of it could be used
        yield Complaint(
            ("online.host",),
            f"online.host = {host!r} is no address of this machine ({reason}): give the one by which the others reach "
            "it.",
        )
        return
    wanted = {server.port: "online.port" for server in deployment.servers}
    if deployment.master is not None:
        wanted |= {online.master_port: "online.master_port", online.metrics_port: "online.metrics_port"}
    for port, name in wanted.items():
        if reason := why_unusable(host, port):
            yield Complaint(
                (name, "online.host"),
                f"{name} = {getattr(online, name.partition('.')[2])}: port {port} on {host} cannot be used ({reason}): "
                "choose another one, or end what uses it.",
            )


def _environment(deployment: Deployment) -> Iterator[Complaint]:
    environment = deployment.environment
    if environment.is_installed:
        return
    what = "is not up to date" if environment.python.is_file() else "does not exist"
    yield Complaint(
        ("online.environment",),
        f"The engines' environment {str(environment.folder)!r} {what}: run '{environment.install_command}'.",
    )


def _memory(config: TrainConfig, deployment: Deployment) -> Iterator[Complaint]:
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts what the page cache would give back
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    if deployment.store_bytes > free:
        yield Complaint(
            ("online.store_gib", "online.in_flight", "online.num_servers"),
            f"The servers would lend {deployment.store_bytes / 2**30:.4g} GiB to the store, but {free / 2**30:.4g} GiB "
            "of memory are free here: lower online.in_flight or online.store_gib.",
        )
