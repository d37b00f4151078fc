"""`dflash regenerate`: a data set with the target's own answers, from SGLang servers."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from dflash.cli.options import check_writable, number_between, whole_number, words


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "regenerate",
        help="have SGLang servers answer a data set's prompts anew",
        description="Write the conversations of DATA with answers that the served target gives to the same prompts, as "
        "training data. All answers of a conversation are given anew, one after the other. Interrupted at any moment, "
        "the same command goes on; OUT appears when it is complete.",
        epilog="Example: dflash regenerate talk.jsonl --server http://127.0.0.1:30000 --out data/talk-8b.jsonl",
    )
    parser.add_argument(
        "data", nargs="+", help="conversations or prompts: JSONL files, data folders or Hugging Face ids"
    )
    parser.add_argument(
        "--server", dest="servers", action="append", required=True, metavar="URL", help="of an SGLang server of the "
        "target; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL of conversations")
    parser.add_argument(
        "--target", metavar="T", help="whose tokenizer and chat template are used: a Hugging Face id or a folder; left "
        "out, what the servers serve"
    )
    parser.add_argument("--revision", help="of the target on the hub")
    sources = parser.add_argument_group("data")
    sources.add_argument("--subset", metavar="NAME", help="configuration of a data set that has several")
    sources.add_argument("--split", type=words, default="train", help="of a data set")
    sources.add_argument("--limit", type=whole_number(1), metavar="N", help="conversations taken from each source")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--temperature", type=number_between(0, 100), default=0.0, help="0 is greedy")
    answers.add_argument(
        "--max-new-tokens", type=whole_number(1), default=2048, metavar="N", help="tokens of an answer"
    )
    answers.add_argument(
        "--max-length", type=whole_number(2), metavar="N", help="tokens of a conversation, as data.max_length of the "
        "training; left out, what the servers take"
    )
    answers.add_argument(
        "--last-turn-only", action="store_true", help="give the last answer anew only, behind the others as they were "
        "given; train with data.last_turn_only=true"
    )
    answers.add_argument("--seed", type=whole_number(0), default=0, help="for a temperature above 0")
    asking = parser.add_argument_group("servers")
    asking.add_argument(
        "--in-flight", type=whole_number(1), default=32, metavar="N", help="answers that each server works on at a time"
    )
    asking.add_argument(
        "--patience", type=number_between(1, 1e6), default=600.0, metavar="S", help="seconds for which an answer may "
        "fail again and again"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=run, kept="every finished answer is kept: run the same command again to go on.")


def run(args: argparse.Namespace) -> int:
    check_writable(args.out)

    from dflash.config import DataConfig
    from dflash.data.tokenizer import load_tokenizer
    from dflash.online.answering import AnswerSettings, AskSettings
    from dflash.online.regenerate import Order, completed, describe_servers, regenerate
    from dflash.online.servers import ServerList

    ServerList(args.servers)  # refuses what is no list of addresses
    data = DataConfig(train=args.data, subset=args.subset, split=args.split, limit=args.limit)
    answers = AnswerSettings(
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        max_length=args.max_length,
        last_turn_only=args.last_turn_only,
        seed=args.seed,
    )
    order = Order(data, args.target, args.revision, answers)
    result = completed(order, args.out)
    if result is None:
        if order.model is None:
            served = describe_servers(args.servers)
            order = replace(order, model=served.model, revision=order.revision or served.revision)
        tokenizer = load_tokenizer(order.model, order.revision)
        asking = AskSettings(in_flight=args.in_flight, patience=args.patience)
        result = regenerate(order, args.out, args.servers, tokenizer, asking)
    if args.json:
        print(json.dumps({"out": str(args.out), **result}))
        return 0
    print(f"{args.out}: {result['conversations']} conversations with {result['tokens']} answer tokens.")
    for what, reasons in (("left out", result["reasons"]), ("could not be read", result["unreadable"])):
        for reason, count in reasons:
            print(f"  {count} {what}: {reason}")
    return 0
