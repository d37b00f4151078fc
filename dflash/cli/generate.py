"""`dflash generate`: one prompt, decoded by the target alone and by draft and target together."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dflash.cli.options import (
    add_decoding_options,
    add_machine_options,
    check_models,
    load_engine,
    sampling_of,
    whole_number,
    words,
)

if TYPE_CHECKING:
    from dflash.decoding.comparison import Comparison, Difference
    from dflash.decoding.engine import Engine


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="decode one prompt with and without the draft",
        description="Decode one prompt by the target alone and by draft and target together, on the same engine, and "
        "compare. The speed-up is taken against the target alone in its fastest shape (one token per forward); "
        "`identical` against the target alone in the shape of the block, because bf16 rounds by shape.",
    )
    parser.add_argument("--prompt", type=words, required=True, metavar="TEXT", help="the user's message")
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=128, metavar="N", help="tokens at most")
    add_decoding_options(parser)
    add_machine_options(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: text, target_tokens, draft_tokens, identical, tau, speedup, target_tok_s, "
        "draft_tok_s, steps and more; times in seconds",
    )
    parser.set_defaults(run=run, kept="nothing was written.")


def run(args: argparse.Namespace) -> int:
    check_models(args)
    sampling = sampling_of(args)

    from dflash.decoding.comparison import compare, explain_difference
    from dflash.decoding.prompt import render_prompt

    engine = load_engine(args)
    prompt_ids = render_prompt(engine.target, args.prompt, max_new_tokens=args.max_new_tokens)
    engine.warm_up(args.block_size)
    comparison = compare(engine, prompt_ids, args.max_new_tokens, sampling, args.block_size)
    # How the fastest plain decoding parts from the block's shape; a matter of rounding, and of greedy decoding only.
    parting = None
    if comparison.reference:
        parting = explain_difference(engine.target, prompt_ids, comparison.target, comparison.reference)
    text = engine.target.tokenizer.decode(comparison.draft.tokens, skip_special_tokens=True)
    if args.json:
        print(json.dumps(_record(args, engine, comparison, parting, text), ensure_ascii=False))
    else:
        print(text.rstrip() + "\n\n" + _summary(args, comparison, parting))
    return 0


def _record(
    args: argparse.Namespace, engine: "Engine", comparison: "Comparison", parting: "Difference | None", text: str
) -> dict[str, Any]:
    """The result as JSON-safe data. `target_tokens` are those that `identical` was judged by."""
    import torch

    target, draft = comparison.target, comparison.draft
    return {
        "target": engine.target.name,
        "draft": args.draft,
        "dtype": args.dtype,
        "device": str(engine.target.device),
        "threads": torch.get_num_threads(),
        "temperature": args.temperature,
        "rule": args.rule or "target",
        "seed": args.seed or 0,
        "max_new_tokens": args.max_new_tokens,
        "block_size": draft.block_size,
        "prompt_tokens": draft.prompt_tokens,
        "text": text,
        "target_tokens": (comparison.reference or target).tokens,
        "draft_tokens": draft.tokens,
        "identical": comparison.identical,
        "first_difference": comparison.first_difference,
        "tau": draft.tau,
        "speedup": comparison.speedup,
        "target_tok_s": target.tok_s,
        "draft_tok_s": draft.tok_s,
        "target_time_to_first_token_s": target.time_to_first_token_s,
        "draft_time_to_first_token_s": draft.time_to_first_token_s,
        "one_token_shape": {"tokens": target.tokens, "difference": asdict(parting) if parting else None},
        "steps": draft.to_dict()["steps"],
    }


def _summary(args: argparse.Namespace, comparison: "Comparison", parting: "Difference | None") -> str:
    """Three to four lines for people."""
    rows = [("target alone", comparison.target), ("with draft", comparison.draft)]
    lines = [
        f"{name:<12} {len(trace.tokens):>5} tokens {trace.tok_s:>8.1f} tok/s   "
        f"first token after {1000 * trace.time_to_first_token_s:.0f} ms"
        for name, trace in rows
    ]
    speedup = f"{comparison.speedup:.2f}x" if comparison.speedup else "not measured (nothing was decoded)"
    if comparison.identical is None:
        identical = "not judged when sampling"
    elif comparison.identical:
        identical = "yes, every token"
    else:
        identical = f"NO, from token {comparison.first_difference}"
    lines.append(f"speed-up {speedup} | tau {comparison.draft.tau:.2f} tokens per forward | identical: {identical}")
    if parting and parting.gap is not None:
        lines.append(
            f"One token per forward would have chosen otherwise at token {parting.index}, "
            f"by {abs(parting.gap):.2g} logits ({args.dtype} rounding)."
        )
    return "\n".join(lines)
