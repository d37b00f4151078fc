"""`dflash evaluate`: prompt sets with and without the draft; tau, speed-up, acceptance per position, identity."""

import argparse
from pathlib import Path

from dflash.cli.options import (
    add_decoding_options,
    add_machine_options,
    check_target,
    check_writable,
    load_target,
    sampling_of,
    whole_number,
)
from dflash.cli.table import table
from dflash.errors import UserError
from dflash.evaluation.draft_names import draft_label, file_name

_COLUMNS = ("set", "prompts", "tau", "speed-up", "identical", "target tok/s", "draft tok/s")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a draft on prompt files",
        description="Decode every prompt by the target alone and by draft and target together, pair after pair "
        "on the same engine, and pool: tau (emitted tokens per target forward, a last block counted as the stop "
        "token or the limit cut it; tau_uncut beside it in OUT counts every block in full), speed-up (median over "
        "the prompts' pairs), how many outputs were identical, acceptance per position. Exits with 1 when an output "
        "was not identical.",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        action="extend",
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL with `turns` and, where there are any, `id`, `category` and `language`; each file is a set named "
        "after it; may be repeated. A prompt without a category counts under its set, one without a language under its "
        "script",
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
        help="write per-prompt and pooled results here, and where each block died; with several --draft, a folder for "
        "one file each. An interrupted evaluation goes on from OUT.partial.jsonl",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a finished OUT")
    add_decoding_options(parser, several_drafts=True)
    add_machine_options(parser)
    parser.set_defaults(run=run, kept="with --json every finished prompt is kept: run the same command again to go on.")


def run(args: argparse.Namespace) -> int:
    from dflash.evaluation.prompt_sets import read_sets

    prompts = read_sets(args.prompts, args.limit)
    drafts = _drafts(args)

    from dflash.decoding.engine import Engine
    from dflash.evaluation.benchmark import EvaluationSettings, evaluate, evaluate_to_file
    from dflash.model.loading import load_draft

    settings = EvaluationSettings(args.max_new_tokens, sampling_of(args), args.block_size, args.turns)
    target = load_target(args)
    all_identical = True
    for name, out in drafts.items():
        engine = Engine(target, load_draft(name, target))
        label = draft_label(name)
        if len(drafts) > 1:
            print(f"draft {label}")
        if out:
            report = evaluate_to_file(engine, prompts, out, settings, draft_name=label)
        else:
            report = evaluate(engine, prompts, settings)
        print(_table(report["by_set"] | {"all": report["pooled"]}))
        print(_acceptance_line(report["pooled"]["acceptance"]))
        all_identical &= report["pooled"]["identical"] == report["pooled"]["checked"]
    return 0 if all_identical else 1


def _drafts(args: argparse.Namespace) -> dict[str, Path | None]:
    """Each draft's name with the file for its results, if results are to be kept; everything refused before loading."""
    from dflash.model.draft_folder import check_draft

    check_target(args)
    names = list(dict.fromkeys(args.draft or ["default"]))
    for name in names:
        check_draft(name, args.target, args.block_size)
    if args.json is None:
        return dict.fromkeys(names)
    if len(names) == 1:
        outs = [args.json]
        if args.json.is_dir():
            raise UserError(f"{args.json} is a folder: give --json a file, or several --draft to fill the folder.")
    else:
        outs = [args.json / f"{file_name(draft_label(name))}.json" for name in names]
    if twice := next((out for out in outs if outs.count(out) > 1), None):
        raise UserError(f"The results of two drafts would both be {twice}: give the drafts' folders different names.")
    for out in outs:
        if out.exists() and not args.overwrite:
            raise UserError(f"{out} is a finished evaluation: add --overwrite to replace it, or give another file.")
        check_writable(out)
    return dict(zip(names, outs, strict=True))


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
    return table(rows)


def _acceptance_line(acceptance: dict) -> str:
    reached = " ".join(_number(row["value"], ".2f") for row in acceptance["cumulative"])
    return f"accepted up to position 1, 2, ...: {reached}  ({acceptance['steps']} steps)"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
