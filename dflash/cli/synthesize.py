"""`dflash synthesize`: training conversations whose answers the target wrote."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dflash.cli.options import (
    add_machine_options,
    check_target,
    check_writable,
    load_target,
    number_between,
    whole_number,
    words,
)
from dflash.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "synthesize",
        help="write training conversations answered by the target",
        description="Write conversations (JSONL, one a line) whose answers the target itself gave, greedily. The "
        "prompts come from files, from a data set, or from the target, which then writes the user's turns as well. "
        "Running the same command again continues where the last run stopped.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL file that is appended to")
    sources = parser.add_argument_group("prompts (at least one)")
    sources.add_argument(
        "--prompts",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSONL with `id` (left out: file name and line), `category` and `turns`, of which the first is answered; "
        "may be repeated",
    )
    sources.add_argument(
        "--dataset", type=words, metavar="ID", help="a Hugging Face data set or a folder of data files"
    )
    sources.add_argument("--subset", metavar="NAME", help="configuration of the data set, where it has several")
    sources.add_argument("--split", default="train", help="of the data set")
    sources.add_argument("--column", default="prompt", help="of the data set: texts or lists of messages")
    sources.add_argument("--limit", type=whole_number(1), metavar="N", help="prompts taken from each file or data set")
    sources.add_argument(
        "--self-instruct",
        type=whole_number(1),
        metavar="N",
        help="conversations that the file shall hold whose user's turns the target samples itself",
    )
    sources.add_argument(
        "--user-prefix",
        action="append",
        default=[],
        metavar="TEXT",
        help="opening of the self-instructed user's turns; repeated ones take turns",
    )
    how = parser.add_argument_group("generation")
    how.add_argument("--max-new-tokens", type=whole_number(1), default=256, metavar="N", help="tokens of an answer")
    how.add_argument(
        "--max-prompt-tokens", type=whole_number(2), default=256, metavar="N", help="longer prompts are left out"
    )
    how.add_argument("--batch-size", type=whole_number(1), default=64, metavar="N", help="conversations at a time")
    how.add_argument(
        "--temperature", type=number_between(0.01, 100), default=1.0, help="of self-instructed user's turns"
    )
    how.add_argument("--top-p", type=number_between(0.01, 1), default=0.95, help="of self-instructed user's turns")
    how.add_argument("--seed", type=whole_number(0), default=0, help="of self-instructed user's turns")
    add_machine_options(parser)
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    parser.set_defaults(run=run, kept="every finished batch is kept: run the same command again to go on.")


def run(args: argparse.Namespace) -> int:
    if not (args.prompts or args.dataset or args.self_instruct):
        raise UserError("There is nothing to answer: give --prompts FILE, --dataset ID or --self-instruct N.")
    check_target(args)
    check_writable(args.out)

    from dflash.data.conversations import read_prompts

    # Line numbers stand in for missing ids; the file's name keeps those of one file apart from another's.
    prompts = [p for file in args.prompts for p in read_prompts(file, args.limit, id_prefix=f"{file.stem}-")]
    if args.dataset:
        from dflash.data.hf_dataset import read_dataset_prompts

        prompts += read_dataset_prompts(
            args.dataset, subset=args.subset, split=args.split, column=args.column, limit=args.limit
        )

    from dflash.data.synthesize import SynthesisReport, SynthesisSettings, answer_prompts, self_instruct

    target = load_target(args)
    settings = SynthesisSettings(
        max_new_tokens=args.max_new_tokens,
        max_prompt_tokens=args.max_prompt_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        temperature=args.temperature,
        top_p=args.top_p,
        user_prefixes=tuple(args.user_prefix) or ("",),
    )
    report = SynthesisReport()
    if prompts:
        report += answer_prompts(target, prompts, args.out, settings)
    if args.self_instruct:
        report += self_instruct(target, args.self_instruct, args.out, settings)
    if args.json:
        print(json.dumps({"out": str(args.out), **asdict(report)}))
    else:
        print(
            f"{args.out}: {report.written} conversations written ({report.tokens} answer tokens), "
            f"{report.resumed} were there already, {report.rejected} prompts left out."
        )
    return 0
