"""What `dflash train --dry-run` prints: the resolved config, what it amounts to, and what this machine lacks for it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dflash.config import TrainConfig
    from dflash.online.deployment import Deployment
    from dflash.target_facts import TargetFacts
    from dflash.training.estimate import Estimate


@dataclass(frozen=True)
class Plan:
    """A checked config with everything that was derived from it."""

    config: "TrainConfig"
    run_dir: Path
    facts: "TargetFacts | None"
    estimate: "Estimate"
    notes: list[str]
    not_ready: list[str]  # what keeps this machine, though not every machine, from starting it
    deployment: "Deployment | None" = None  # what is started besides this process
    rank_arguments: tuple[str, ...] = ()  # of `dflash` in each rank that is started


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """To standard output: one JSON object, or YAML in which all but the config is a comment."""
    from dflash.config import dump_config

    if as_json:
        print(
            json.dumps(
                {
                    "run_folder": str(plan.run_dir),
                    "config": plan.config.model_dump(),
                    "target": plan.facts and plan.facts.origin,
                    "derived": plan.estimate.to_dict(),
                    "processes": dict(_commands(plan)),
                    "notes": plan.notes,
                    "not_ready": plan.not_ready,
                }
            )
        )
        return
    print(f"# Run folder: {plan.run_dir}\n{dump_config(plan.config)}", end="")
    for line in (*_derived(plan), *_pipeline(plan)):
        print(f"# {line}".rstrip())
    for note in plan.notes:
        print(f"# Note: {note}")
    for lack in plan.not_ready:
        print(f"# Not ready on this machine: {lack}")


def _derived(plan: Plan) -> Iterator[str]:
    config, numbers = plan.config, plan.estimate
    at_most = "at most " if config.run.epochs is not None else ""
    yield ""
    yield (
        f"Step: {config.run.batch_size} row(s) = {numbers.world_size} rank(s) x {numbers.accumulation} micro-batch(es) "
        f"x {config.run.micro_batch_size} row(s)"
    )
    if numbers.steps is None:
        yield f"Steps: {config.run.epochs:g} epochs of data that is counted when the run starts"
    else:
        data = "" if numbers.conversations is None else f"; at most {numbers.conversations:,} conversations to train on"
        yield f"Steps: {at_most}{numbers.steps:,}{data}"
        yield f"Rows: {at_most}{numbers.rows:,}, at most {numbers.tokens:,} tokens"
        corners = ", ".join(f"{point.rate:.3g} at {point.name} ({point.step:,})" for point in numbers.rates)
        yield f"Learning rate: {corners}"
    yield (
        f"Answers: at least {config.data.min_supervised} supervised tokens; one of fewer than "
        f"{config.draft.block_size} fills no block, and its last slots teach nothing"
    )
    if numbers.draft_parameters is not None:
        yield f"Draft: {numbers.draft_parameters:,} parameters"
    if numbers.checkpoint_bytes is not None:
        yield (
            f"Disk: {_size(numbers.checkpoint_bytes)} a checkpoint, up to {_size(numbers.disk_bytes)} at once "
            f"({config.checkpoint.keep} kept, the best, one being written)"
        )
    yield from _memory(plan)


def _memory(plan: Plan) -> Iterator[str]:
    numbers = plan.estimate
    if not numbers.memory:
        return
    host = f", and {_size(numbers.host_bytes)} of host memory" if numbers.host_bytes else ""
    yield f"Memory per rank: about {_size(numbers.device_bytes)}{host}, of which (target as in {plan.facts.origin})"
    width = max(len(part.name) for part in numbers.memory)
    for part in numbers.memory:
        yield f"  {part.name:<{width}}  {_size(part.bytes):>9}{'  on the host' if part.on_host else ''}"


def _pipeline(plan: Plan) -> Iterator[str]:
    """Who runs where, what the store has to hold, and every command."""
    deployment = plan.deployment
    if deployment is None:
        return
    yield ""
    for number, server in enumerate(deployment.servers):
        yield f"Server {number}: {server.url} on {_place(server.gpus)}, layers {list(server.layer_ids)}"
    yield f"Ranks: {deployment.ranks} on {_place(deployment.trainer_gpus)}"
    yield (
        f"Store: {_size(deployment.store_bytes)} lent by the servers; at most {_size(deployment.needed_bytes)} in "
        f"flight ({deployment.ranks} rank(s) x {plan.config.online.in_flight} documents)"
    )
    for name, command in _commands(plan):
        yield f"Command of {name}: {command}"


def _commands(plan: Plan) -> Iterator[tuple[str, str]]:
    """Name and command of each process that would be started."""
    if plan.deployment is None:
        return
    from dflash.online.trainers import trainer_command

    yield from plan.deployment.commands()
    yield "ranks", plan.deployment.of_ranks(trainer_command(plan.deployment.ranks, plan.rank_arguments))


def _place(gpus: tuple[str, ...]) -> str:
    return f"GPU {', '.join(gpus)}" if gpus else "the CPU"


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
