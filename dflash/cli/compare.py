"""`dflash compare`: one prompt, decoded in every way there is on the same target, timed in turns."""

import argparse
import json
from typing import Any

from dflash.cli.options import (
    add_decoding_options,
    add_machine_options,
    check_target,
    load_target,
    sampling_of,
    whole_number,
    words,
)
from dflash.cli.table import table

_COLUMNS = ("way", "engine", "speed-up", "tok/s", "tau", "forwards", "first token", "tokens", "same text?")
_LEFT = (0, 1, 8)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="time drafts, prompt lookup and a small model on one prompt",
        description="Decode one prompt by the target alone, with each draft, and in the ways of transformers (plain, "
        "prompt lookup, a small model that assists), one after the other and in alternating order from round to "
        "round. Speeds are medians over rounds; a speed-up is taken within its round, against the target alone. Ways "
        "of transformers run on an engine of their own: its plain row says how much of the distance that is. Exits "
        "with 1 when a draft's text is not that of plain decoding.",
    )
    parser.add_argument("--prompt", type=words, required=True, metavar="TEXT", help="the user's message")
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=128, metavar="N", help="tokens at most")
    parser.add_argument("--rounds", type=whole_number(1), default=3, metavar="N", help="how often each way runs")
    parser.add_argument(
        "--lookup-tokens", type=whole_number(0), default=10, metavar="N", help="prompt lookup proposes; 0 leaves it out"
    )
    parser.add_argument(
        "--assistant", default="", metavar="M", help="a small model (folder or id, same tokenizer); left out, none"
    )
    add_decoding_options(parser, several_drafts=True)
    add_machine_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with a row for each way; times in seconds"
    )
    parser.set_defaults(run=run, kept="nothing was written.")


def run(args: argparse.Namespace) -> int:
    names = _drafts(args)
    sampling = sampling_of(args)

    from dflash.decoding.engine import Engine
    from dflash.decoding.prompt import render_prompt
    from dflash.decoding.transformers_engine import load_assistant
    from dflash.decoding.ways import Lineup, Way, check_rounds, other_ways
    from dflash.evaluation.machine import describe_machine
    from dflash.evaluation.ways_report import row_of
    from dflash.model.loading import load_draft

    check_rounds(args.rounds)
    shared = {"temperature": sampling.temperature, "seed": sampling.seed, "rule": sampling.rule}
    ways = [Way("draft", draft=name, block_size=args.block_size or 0, **shared) for name in names]
    ways += other_ways(sampling.temperature, sampling.seed, args.lookup_tokens, args.assistant)
    target = load_target(args)
    prompt_ids = render_prompt(target, args.prompt, max_new_tokens=args.max_new_tokens)

    def warm_engine(name: str) -> Engine:
        engine = Engine(target, load_draft(name, target))
        engine.warm_up()
        return engine

    lineup = Lineup(
        ways, engine_of=warm_engine, assistant_of=lambda name: load_assistant(name, target), lookup=lambda: target
    )
    rows = [row_of(found) for found in lineup.run(prompt_ids, args.max_new_tokens, args.rounds)]
    if args.json:
        about = {"prompt": args.prompt, "prompt_tokens": len(prompt_ids), "max_new_tokens": args.max_new_tokens}
        print(json.dumps(about | {"machine": describe_machine(Engine(target)), "rows": rows}, ensure_ascii=False))
    else:
        print(table([_COLUMNS, *map(_cells, rows)], left=_LEFT))
    return 1 if any(row["kind"] == "draft" and row["identical"] is False for row in rows) else 0


def _drafts(args: argparse.Namespace) -> list[str]:
    """The drafts' names; they, the target and the small model are refused before anything is loaded."""
    from dflash.model.draft_folder import check_draft
    from dflash.target_source import check_target_reachable

    check_target(args)
    if args.assistant:
        check_target_reachable(args.assistant)
    names = list(dict.fromkeys(args.draft or ["default"]))
    for name in names:
        check_draft(name, args.target, args.block_size)
    return names


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    speedup = "-" if row["speedup"] is None else f"{row['speedup']:.2f}x"
    return (
        row["label"],
        row["engine"],
        speedup,
        f"{row['tok_s']:.1f}",
        f"{row['tau']:.2f}",
        str(row["forwards"]),
        f"{1000 * row['time_to_first_token_s']:.0f} ms",
        str(row["tokens"]),
        row["verdict"],
    )
