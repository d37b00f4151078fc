"""Which block size is best on this machine: the same prompts at every size, beside the target alone, in one run.

Speed is a ratio within one run. Every round decodes a prompt by the target alone and at every block size, in an order
that turns from round to round, so that a machine that slows down or warms up does so for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tqdm import tqdm

from dflash.data.conversations import Prompt
from dflash.decoding.engine import Engine
from dflash.decoding.prompt import render_prompt
from dflash.decoding.trace import Trace
from dflash.errors import UserError
from dflash.evaluation.benchmark import draft_fingerprint
from dflash.evaluation.block_sizes_file import FORMAT, KIND
from dflash.evaluation.machine import describe_machine
from dflash.evaluation.speedup import StepCost


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured. `block_sizes` None takes 2 up to the draft's; `max_new_tokens` per prompt and size."""

    max_new_tokens: int = 96
    block_sizes: tuple[int, ...] | None = None


def measure_block_sizes(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: BenchmarkSettings = BenchmarkSettings(),
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Greedy decoding of every prompt's first turn at every block size and by the target alone.

    Returns:
        JSON-safe: `settings`, `machine`, `target_ms` (one token of the target alone), `best` (the block size of the
        highest speed-up) and `sizes`, one row per block size: milliseconds of a step's parts, tau, the median of the
        paired speed-ups with the lowest and highest, and the accepted histogram. Times are medians over all steps.

    Raises:
        UserError: no draft, a block size that it does not have, or a prompt that is empty or too long.
    """
    if engine.proposer is None:
        raise UserError("This engine has no draft: load one to measure its block sizes.")
    sizes = settings.block_sizes or tuple(range(2, engine.proposer.block_size + 1))
    if wrong := next((size for size in sizes if not 2 <= size <= engine.proposer.block_size), None):
        raise UserError(f"Block size {wrong} is not among the draft's: choose 2 to {engine.proposer.block_size}.")
    rendered = [render_prompt(engine.target, p.turns[:1], max_new_tokens=settings.max_new_tokens) for p in prompts]
    traces: dict[int, list[Trace]] = {1: []} | {size: [] for size in sizes}  # 1 is the target alone
    for size in sizes:
        engine.warm_up(size)
    with tqdm(total=len(rendered) * len(traces), unit="run", disable=not progress, desc="benchmark") as bar:
        for number, ids in enumerate(rendered):
            for width in _turned(list(traces), number):
                traces[width].append(_decode(engine, ids, width, settings.max_new_tokens))
                bar.update()
    alone = traces.pop(1)
    target_ms = _median_ms(alone, "seconds")
    rows = [_row(size, found, alone, target_ms) for size, found in traces.items()]
    return {
        "format": FORMAT,
        "kind": KIND,
        "settings": {
            "target": engine.target.name,
            "draft": draft_fingerprint(engine),
            "block_size": engine.proposer.block_size,
            "prompts": len(prompts),
            "max_new_tokens": settings.max_new_tokens,
        },
        "machine": describe_machine(engine),
        "target_ms": target_ms,
        "best": max(rows, key=lambda row: row["speedup"] or 0)["block_size"],
        "sizes": rows,
    }


def _decode(engine: Engine, ids: list[int], width: int, max_new_tokens: int) -> Trace:
    if width == 1:
        return engine.decode_target(ids, max_new_tokens=max_new_tokens).finish()
    return engine.decode_draft(ids, max_new_tokens=max_new_tokens, block_size=width).finish()


def _turned(widths: list[int], by: int) -> list[int]:
    by %= len(widths)
    return widths[by:] + widths[:by]


def _row(size: int, traces: list[Trace], alone: list[Trace], target_ms: float | None) -> dict[str, Any]:
    ratios = [
        draft.tok_s / target.tok_s
        for draft, target in zip(traces, alone, strict=True)
        if draft.decode_steps and target.decode_steps
    ]
    steps = sum(len(trace.decode_steps) for trace in traces)
    tau = sum(trace.decoded_tokens for trace in traces) / steps if steps else None
    parts = {f"{part}_ms": _median_ms(traces, f"{part}_s") for part in ("draft", "verify", "overhead")}
    cost = StepCost(target_ms, *parts.values()) if steps and target_ms else None
    return {
        "block_size": size,
        **parts,
        "steps": steps,
        "tau": tau,
        "histogram": [sum(counts) for counts in zip(*(trace.accepted_histogram for trace in traces), strict=True)],
        "speedup": median(ratios) if ratios else None,
        "speedup_range": [min(ratios), max(ratios)] if ratios else None,
        "expected_speedup": cost.speedup(tau) if cost else None,
        "break_even_tau": cost.break_even_tau if cost else None,
    }


def _median_ms(traces: Sequence[Trace], part: str) -> float | None:
    seconds = [getattr(step, part) for trace in traces for step in trace.decode_steps]
    return 1000 * median(seconds) if seconds else None
