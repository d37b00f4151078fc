"""The figures of one paired run, and many of them pooled."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from dflash.decoding.comparison import Comparison
from dflash.evaluation.acceptance import AcceptanceCounts

Result = dict[str, Any]


def result_of(compared: Comparison) -> Result:
    """The figures of one paired run. Times are seconds, speeds tokens per second, both without the prefill.

    `tau` is emitted tokens per target forward: a last block cut by a stop token or the limit counts what it emitted.
    """
    target, draft = compared.target, compared.draft
    return {
        "prompt_tokens": draft.prompt_tokens,
        "tau": draft.tau if draft.decode_steps else None,
        "speedup": compared.speedup,
        "identical": compared.identical,
        "first_difference": compared.first_difference,
        "stopped": draft.stopped,
        "steps": len(draft.decode_steps),
        "decoded_tokens": draft.decoded_tokens,
        "accepted_histogram": draft.accepted_histogram,
        "draft_tok_s": draft.tok_s,
        "draft_seconds": draft.seconds,
        "draft_first_token_s": draft.time_to_first_token_s,
        "draft_s": sum(step.draft_s for step in draft.decode_steps),
        "verify_s": sum(step.verify_s for step in draft.decode_steps),
        "overhead_s": sum(step.overhead_s for step in draft.decode_steps),
        "target_tok_s": target.tok_s,
        "target_seconds": target.seconds,
        "target_first_token_s": target.time_to_first_token_s,
        "target_steps": len(target.decode_steps),
        "target_decoded_tokens": target.decoded_tokens,
    }


def pool(results: Sequence[Result]) -> dict[str, Any]:
    """One summary of many results of `evaluate`, also across prompt sets.

    `tau` is all emitted tokens over all target forwards, last blocks counted as the stop token or the limit cut them;
    `acceptance`, from the pooled histogram, counts every block in full, and so does its `tau_uncut`. `speedup` is the
    median of the paired ratios, `identical` how many of the `checked` results equal plain decoding.
    """
    speedups = [r["speedup"] for r in results if r["speedup"] is not None]
    checked = [r["identical"] for r in results if r["identical"] is not None]
    steps, tokens = _total(results, "steps"), _total(results, "decoded_tokens")
    histograms = [r["accepted_histogram"] for r in results]
    return {
        "prompts": len({(r["set"], r["id"]) for r in results}),
        "turns": len(results),
        "skipped": _total(results, "skipped"),
        "steps": steps,
        "decoded_tokens": tokens,
        "tau": tokens / steps if steps else None,
        "speedup": median(speedups) if speedups else None,
        "identical": sum(checked),
        "checked": len(checked),
        "target_tok_s": _rate(_total(results, "target_decoded_tokens"), _total(results, "target_seconds")),
        "draft_tok_s": _rate(tokens, _total(results, "draft_seconds")),
        "mean_step_ms": {
            part: 1000 * _total(results, f"{part}_s") / steps if steps else None
            for part in ("draft", "verify", "overhead")
        },
        "target_step_ms": _milliseconds(_total(results, "target_seconds"), _total(results, "target_steps")),
        "acceptance": AcceptanceCounts.pooled(histograms).to_dict() if results else None,
    }


def pool_by(results: Sequence[Result], field: str) -> dict[str, dict[str, Any]]:
    """`pool` of the results that share a `set`, `category` or `language`, in the order they first appear."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result[field], []).append(result)
    return {name: pool(members) for name, members in groups.items()}


def _total(results: Sequence[Result], name: str) -> float:
    return sum(result[name] for result in results)


def _rate(tokens: float, seconds: float) -> float | None:
    return tokens / seconds if seconds else None


def _milliseconds(seconds: float, steps: float) -> float | None:
    return 1000 * seconds / steps if steps else None
