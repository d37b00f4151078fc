"""`dflash evaluate`: prompt sets with and without the draft; tau, speed-up, acceptance per position, identity."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import (
    add_decoding_options,
    add_machine_options,
    check_writable,
    load_engine,
    sampling_of,
    whole_number,
)
from dflash.errors import UserError
from dflash.files import write_atomically

if TYPE_CHECKING:
    from dflash.data.conversations import Prompt

_COLUMNS = ("set", "prompts", "tau", "speed-up", "identical", "target tok/s", "draft tok/s")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a draft on prompt files",
        description="Decode every prompt by the target alone and by draft and target together, pair after pair "
        "on the same engine, and pool: tau (tokens per target forward), speed-up (median over the prompts' pairs), how "
        "many outputs were identical, acceptance per position. Exits with 1 when an output was not identical.",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="JSONL with `id`, `category` and `turns`; a set named after the file; may be repeated",
    )
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="prompts of each file; left out, all")
    parser.add_argument(
        "--max-new-tokens", type=whole_number(1), default=128, metavar="N", help="tokens per turn at most"
    )
    parser.add_argument("--turns", choices=("first", "all"), default="first", help="turns of each prompt to answer")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="OUT",
        help="write per-prompt and pooled results here; an interrupted evaluation goes on from OUT.partial.jsonl",
    )
    add_decoding_options(parser)
    add_machine_options(parser)
    parser.set_defaults(run=run, kept="with --json every finished prompt is kept: run the same command again to go on.")


def run(args: argparse.Namespace) -> int:
    prompts = _read_sets(args.prompts, args.limit)
    if args.json:
        check_writable(args.json)

    from dflash.evaluation.benchmark import EvaluationSettings, evaluate
    from dflash.evaluation.results import pool

    settings = EvaluationSettings(args.max_new_tokens, sampling_of(args), args.block_size, args.turns)
    partial = args.json.with_name(args.json.name + ".partial.jsonl") if args.json else None
    report = evaluate(load_engine(args), prompts, settings, journal_path=partial)
    by_set: dict[str, list[dict]] = {file.stem: [] for file in args.prompts}
    for result in report["results"]:
        result["set"], _, result["id"] = result["id"].partition("/")
        by_set[result["set"]].append(result)
    report["by_set"] = {name: pool(results) for name, results in by_set.items()}
    if args.json:
        write_atomically(args.json, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        partial.unlink()
    print(_table(report["by_set"] | {"all": report["pooled"]}))
    print(_acceptance_line(report["pooled"]["acceptance"]))
    return 0 if report["pooled"]["identical"] == report["pooled"]["checked"] else 1


def _read_sets(files: list[Path], limit: int | None) -> list["Prompt"]:
    """All prompts, their ids prefixed with `<set>/`, so that two sets may use the same ids."""
    from dflash.data.conversations import read_prompts

    names = [file.stem for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two prompt files are called {twice!r}: rename one, since sets are named after their files.")
    return [replace(prompt, id=f"{file.stem}/{prompt.id}") for file in files for prompt in read_prompts(file, limit)]


def _table(pools: dict[str, dict]) -> str:
    rows = [_COLUMNS]
    for name, pooled in pools.items():
        rows.append(
            (
                name,
                str(pooled["prompts"]),
                _number(pooled["tau"], ".2f"),
                _number(pooled["speedup"], ".2f") + "x",
                f"{pooled['identical']}/{pooled['checked']}" if pooled["checked"] else "not judged",
                _number(pooled["target_tok_s"], ".1f"),
                _number(pooled["draft_tok_s"], ".1f"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for name, *numbers in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
    return "\n".join(lines)


def _acceptance_line(acceptance: dict) -> str:
    reached = " ".join(_number(row["value"], ".2f") for row in acceptance["cumulative"])
    return f"accepted up to position 1, 2, ...: {reached}  ({acceptance['steps']} steps)"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
