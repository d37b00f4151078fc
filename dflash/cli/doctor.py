"""`dflash doctor`: what works on this machine, what is missing and how to get it."""

import argparse
import json

_MARKS = {"ok": "ok", "optional": "-", "warning": "warning", "missing": "MISSING"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="say what works on this machine, what is missing and how to get it",
        description="Say what works on this machine, what is missing and the command that gets it. Nothing is "
        "installed or downloaded. Exits with 1 when something that every user needs is missing.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=run, kept="nothing was changed.")


def run(args: argparse.Namespace) -> int:
    from dflash.doctor import examine, is_usable, to_dict

    findings = examine()
    if args.json:
        print(json.dumps(to_dict(findings), indent=2, ensure_ascii=False))
        return 0 if is_usable(findings) else 1
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{_MARKS[finding.status]:>7}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            print(f"{'':>7}  {'':<{width}}  -> {finding.remedy}")
    print(
        "\nEverything needed is here." if is_usable(findings) else "\nSomething needed is missing: see MISSING above."
    )
    return 0 if is_usable(findings) else 1
