"""The rates that a plan rests on, each with where it comes from: stated, measured in a run, or assumed.

Assumptions are arithmetic: floating-point operations per token over what a GPU of that kind is taken to reach.

    prefill    2 * (weights of the target's layers) + 2 * S * h * D per layer for causal attention
    training   3 * forward of the draft per row of S tokens, over S: the backward pass takes twice the forward. Forward:
               2*S*n*E^2 for `fc`; per layer 2*Q*(2*E*h*D + 3*E*F) for queries, output and MLP, 4*(S + Q)*E*g*D for
               keys and values, 4*Q*(S/2 + K)*h*D for attention; 2*N*(K-1)*E*V for the logits

S tokens of a conversation for prefill, of a row for training (with packing data.max_length, of several conversations),
N anchors, K slots of a block, Q = N*K, E hidden size, F width of the MLP, h heads and g key/value heads of D
dimensions, n features, V vocabulary or `objective.candidates`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.config import TrainConfig, load_config
from dflash.errors import UserError
from dflash.online.answer_file import REGENERATED, provenance_path
from dflash.online.balance import load_of
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import DraftShape

# Dense bf16 TFLOP/s by the makers' data sheets.
PEAK_TFLOPS = {"a100": 312.0, "h100": 989.0, "h200": 989.0, "b200": 2250.0}
_REACHED = 0.4  # share of the peak that prefill and training are taken to reach
# Bytes/s that one rank reads from the store: TCP as measured once on a loopback of two cores (0.5 to 0.8 GB/s), RDMA an
# eighth of what eight cards of 400 Gb/s carry, at four fifths of their speed.
_LINK = {"tcp": 0.6e9, "rdma": 40e9}
# Answers are generated far slower than prompts are prefilled: a share of prefill's rate that large batches reach.
_GENERATION_SHARE = 0.1


@dataclass(frozen=True)
class Rate:
    """A number and where it comes from; `origin` begins with "stated", "measured" or "assumed"."""

    value: float
    origin: str

    @property
    def is_assumed(self) -> bool:
        """Whether nobody stated or measured it."""
        return self.origin.startswith("assumed")


@dataclass(frozen=True)
class Rates:
    """What a plan needs to know."""

    prefill: Rate  # target tokens/s per serving GPU
    training: Rate  # tokens/s per training GPU that never waits
    link: Rate  # bytes/s that one training GPU's rank reads from the store
    length: Rate  # tokens of a conversation, on average
    generation: Rate  # answer tokens/s per serving GPU, where answers are regenerated
    answer: Rate  # tokens of a regenerated answer, on average


def stated(value: float) -> Rate:
    """A rate that the user gave."""
    return Rate(value, "stated")


def complete_rates(
    given: Mapping[str, Rate], config: TrainConfig, facts: TargetFacts, shape: DraftShape, gpu: str
) -> Rates:
    """The `given` rates, by their names in `Rates`, the others assumed; `gpu` is a key of `PEAK_TFLOPS`.

    Raises:
        UserError: a rate can neither be assumed, since the target's layers are not of one width, nor was it given.
    """
    reached = PEAK_TFLOPS[gpu] * 1e12 * _REACHED
    why = f"assumed: {_REACHED:.0%} of {PEAK_TFLOPS[gpu]:g} TFLOP/s ({gpu.upper()})"
    length = given.get("length") or Rate(config.data.max_length, "assumed: each as long as data.max_length")
    if "prefill" not in given and facts.parameters is None:
        raise UserError(
            f"Target {config.target.name!r} has experts, so its rate cannot be assumed: state it with --prefill-rate."
        )
    prefill = given.get("prefill") or Rate(reached / prefill_flops(facts, length.value), why)
    assumed = {
        "prefill": prefill,
        "training": Rate(reached / training_flops(config, facts, shape, row_length(config, length.value)), why),
        "link": Rate(_LINK[config.online.protocol], f"assumed for online.protocol = {config.online.protocol!r}"),
        "length": length,
        "generation": Rate(_GENERATION_SHARE * prefill.value, f"assumed: {_GENERATION_SHARE:.0%} of prefill's rate"),
        "answer": Rate(length.value / 2, "assumed: half of a conversation"),
    }
    return Rates(**{**assumed, **given})


def row_length(config: TrainConfig, conversation: float) -> float:
    """Tokens of a row, from those of a conversation: packing fills rows almost completely."""
    return config.data.max_length if config.data.packing else conversation


def prefill_flops(facts: TargetFacts, length: float) -> float:
    """Operations per token of a prompt of `length` tokens."""
    embeddings = facts.vocab_size * facts.hidden_size * (1 if facts.tied else 2)
    return 2 * (facts.parameters - embeddings) + 2 * length * facts.heads * facts.head_dim * facts.depth


def training_flops(config: TrainConfig, facts: TargetFacts, shape: DraftShape, length: float) -> float:
    """Operations per token of a row of `length` tokens, forward and backward."""
    width, queries, keys = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    anchors = min(config.blocks.num_anchors, length)
    slots = anchors * shape.block_size
    layer = (
        2 * slots * (2 * width * queries + 3 * width * shape.intermediate_size)
        + 4 * (length + slots) * width * keys
        + 4 * slots * (length / 2 + shape.block_size) * queries
    )
    columns = min(config.objective.candidates or facts.vocab_size, facts.vocab_size)
    logits = 2 * anchors * (shape.block_size - 1) * width * columns
    forward = 2 * length * shape.features * width**2 + shape.layers * layer + logits
    return 3 * forward / length


def measured_rates(run: Path) -> dict[str, Rate]:
    """The rates, by their names in `Rates`, that a run's metrics tell; which ones depends on its source of features.

    Raises:
        UserError: there is no such run, or its records tell none.
    """
    config, records = read_run(run)
    where = f"measured in {run}"
    steps = [line for line in records if _tells_speed(line)]
    if not steps:
        raise UserError(f"Run {str(run)!r} has no record of its speed yet: give one that logged some steps.")
    if config.features.source == "in_process":
        raise UserError(
            f"Run {str(run)!r} ran the target in its own process, so that its speed is that of both together: give a "
            "run with features.source online or cache, or state the rates."
        )
    load = load_of(steps)
    length = _conversation_length(config, steps)
    found = {} if length is None else {"length": Rate(length, where)}
    if load is None:
        speed = [line["tokens_per_s"] / max(0.001, 1 - line["data_wait_percent"] / 100) for line in steps[1:] or steps]
        return {**found, "training": Rate(sum(speed) / len(speed) / _ranks(run), where)}
    if load.capacity is None:
        raise UserError(f"The servers of run {str(run)!r} delivered nothing yet: give a run that logged some steps.")
    found["training"] = Rate(load.capacity.trainer, where)
    if load.serving is not None:
        found["prefill"] = Rate(load.capacity.server, where)
        found |= _answering(run, load.serving, where)
    if load.reading and load.bytes_per_s:
        found["link"] = Rate(load.bytes_per_s / load.reading / load.training, where)
    return found


def _tells_speed(line: Mapping[str, Any]) -> bool:
    """Whether a line has all that rates are taken from; those of other versions, and of a first step, may not."""
    told = all(isinstance(line.get(name), (int, float)) for name in ("tokens", "tokens_per_s", "data_wait_percent"))
    return told and line.get("kind") == "train" and line["tokens_per_s"] > 0


def _conversation_length(config: TrainConfig, steps: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens of a conversation on average; None where they were packed, and no server was asked for each."""
    if not config.data.packing:
        return sum(line["tokens"] for line in steps) / len(steps) / config.run.batch_size
    counted = [online for line in steps if isinstance(online := line.get("online"), dict) and online.get("documents")]
    return counted[-1]["tokens"] / counted[-1]["documents"] if counted else None


def _answering(run: Path, serving: int, where: str) -> dict[str, Rate]:
    """Rates of the answers that a run's own servers regenerated in its last sitting, if they did."""
    path = provenance_path(run / REGENERATED)
    if not path.is_file():
        return {}
    told = json.loads(path.read_text(encoding="utf-8"))
    sitting = told["last_sitting"]
    rates = {"answer": Rate(told["tokens"] / told["conversations"], where)} if told["conversations"] else {}
    if sitting["tokens"] and sitting["seconds"]:
        rates["generation"] = Rate(sitting["tokens"] / sitting["seconds"] / serving, where)
    return rates


def read_run(run: Path) -> tuple[TrainConfig, list[Mapping[str, Any]]]:
    """Config and whole metric lines of a run.

    Raises:
        UserError: it is no run folder, or nothing was logged.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder (it holds no config.yaml): give one such as runs/NAME.")
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"Run {str(run)!r} has no metrics.jsonl ({error.strerror}): give one that logged.") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is under way, or was cut
        if isinstance(record, dict):
            records.append(record)
    return load_config(run / "config.yaml"), records


def _ranks(run: Path) -> int:
    """Ranks of a run, as its newest checkpoint tells."""
    for state in sorted(run.glob("checkpoints/step_*/trainer.json"), reverse=True):
        return json.loads(state.read_text(encoding="utf-8")).get("world_size", 1)
    raise UserError(f"Run {str(run)!r} has no checkpoint that tells its number of ranks: give one that saved.")
