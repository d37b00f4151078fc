"""`dflash benchmark`: what a step costs at every block size on this machine, and which one is fastest."""

import argparse
import json
from pathlib import Path
from typing import Any

from dflash.cli.options import add_machine_options, check_writable, load_engine, whole_number
from dflash.cli.table import table
from dflash.errors import UserError
from dflash.evaluation.draft_names import draft_label

_COLUMNS = ("block size", "draft ms", "verify ms", "overhead ms", "tau", "speed-up", "break-even tau")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        help="measure every block size on this machine",
        description="Decode a few prompts greedily by the target alone and with the draft at every block size, all in "
        "one run and in turns, since times of different runs do not compare. Says what a step costs (medians), how "
        "many tokens it yields (tau), and which block size is fastest here.",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSONL with `turns`; left out, a few that come with dflash"
    )
    parser.add_argument("--limit", type=whole_number(1), default=4, metavar="N", help="prompts to decode at each size")
    parser.add_argument(
        "--max-new-tokens", type=whole_number(1), default=96, metavar="N", help="tokens per prompt and size at most"
    )
    parser.add_argument(
        "--block-sizes", metavar="B,B,...", help="sizes to measure; left out, every one from 2 to the draft's"
    )
    parser.add_argument(
        "--draft", metavar="D", default="default", help="a draft folder, or the one shipped for the target"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished OUT")
    add_machine_options(parser)
    parser.set_defaults(run=run, kept="nothing was written.")


def run(args: argparse.Namespace) -> int:
    from dflash.evaluation.prompt_sets import EXAMPLE_SET, read_sets
    from dflash.model.draft_folder import find_draft

    sizes = _sizes(args.block_sizes)
    prompts = read_sets([args.prompts or EXAMPLE_SET], args.limit)
    find_draft(args.draft, args.target)
    if args.json:
        if args.json.exists() and not args.overwrite:
            raise UserError(
                f"{args.json} is a finished benchmark: add --overwrite to replace it, or give another file."
            )
        check_writable(args.json)

    from dflash.evaluation.block_sizes import BenchmarkSettings, measure_block_sizes
    from dflash.files import write_atomically

    report = measure_block_sizes(load_engine(args), prompts, BenchmarkSettings(args.max_new_tokens, sizes))
    report["draft_name"] = draft_label(args.draft)
    if args.json:
        write_atomically(args.json, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(_table(report))
    return 0


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f"--block-sizes {text!r} is no list of whole numbers: write for example 2,4,8.") from error


def _table(report: dict[str, Any]) -> str:
    names = ("block_size", "draft_ms", "verify_ms", "overhead_ms", "tau", "speedup", "break_even_tau")
    rows = [_COLUMNS, *(tuple(_number(row[name]) for name in names) for row in report["sizes"])]
    alone = _number(report["target_ms"])
    return f"{table(rows, left=())}\ntarget alone: {alone} ms a token; fastest here: block size {report['best']}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
