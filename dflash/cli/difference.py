"""`dflash difference`: two results of `dflash evaluate` on the prompts they share."""

import argparse
import json

from dflash.cli.table import table


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "difference",
        help="compare two results of evaluate, prompt by prompt",
        description="Tau of the second result less that of the first on the prompts both hold, with a 95 % interval "
        "(a bootstrap over prompts), and how many prompts came out better, equal and worse. Results that were decoded "
        "with other settings are refused.",
    )
    parser.add_argument("first", metavar="FIRST", help="result that `dflash evaluate --json` wrote")
    parser.add_argument("second", metavar="SECOND", help="another one")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every pair")
    parser.set_defaults(run=run, kept="nothing was written.")


def run(args: argparse.Namespace) -> int:
    from dflash.evaluation.breakdown import paired
    from dflash.evaluation.report_file import read_report

    result = paired(read_report(args.first), read_report(args.second))
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return 0
    rows = [("prompt", "first", "second", "difference")]
    for a, b in result.pairs:
        difference = None if a.tau is None or b.tau is None else b.tau - a.tau
        name = f"{a.set} {a.id}".strip() + (f" turn {a.turn + 1}" if a.turn else "")
        rows.append((name, _number(a.tau), _number(b.tau), _number(difference, "+.2f")))
    print(table(rows))
    whole = result.difference
    span = ", 95 % interval {:+.2f} to {:+.2f}".format(*whole.interval) if whole.interval else ""
    print(
        f"tau, second less first: {_number(whole.value, '+.2f')}{span}; {result.better} better, {result.equal} equal, "
        f"{result.worse} worse"
    )
    return 0


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
