"""What `dflash train --dry-run` prints: the resolved config, what it amounts to, and what this machine lacks for it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dflash.config import TrainConfig
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
                    "notes": plan.notes,
                    "not_ready": plan.not_ready,
                }
            )
        )
        return
    print(f"# Run folder: {plan.run_dir}\n{dump_config(plan.config)}", end="")
    for line in _derived(plan):
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


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
