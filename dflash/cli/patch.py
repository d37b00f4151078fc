"""`dflash patch`: teach an older SGLang to return the outputs of chosen layers."""

import argparse
from pathlib import Path

_ACTIONS = {
    "apply": "change the installed files, all of them or none",
    "check": "say whether it is applied; exits with 1 when it is not",
    "revert": "bring back the original files, byte for byte",
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "patch",
        help="let an older SGLang capture features",
        description="SGLang 0.5.23 needs no patch. For the versions in patches/ this changes the installed files, so "
        "that the same capture plugin works. Files that someone else changed are refused.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    for name, words in _ACTIONS.items():
        action = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        action.add_argument(
            "place", type=Path, metavar="DIR", help="a Python environment with SGLang, or its site-packages"
        )
        action.set_defaults(run=run, kept="no file was left half changed.")


def run(args: argparse.Namespace) -> int:
    from dflash.online.patching import SourcePatch

    patch = SourcePatch.find(args.place)
    where = f"{len(patch.files)} files of SGLang in {patch.site_packages}"
    if args.action == "check":
        state = patch.state()
        words = {
            "patched": "are patched",
            "original": "are not patched",
            "mixed": "are patched in part: apply or revert",
        }
        print(f"{where} {words[state]}.")
        return 0 if state == "patched" else 1
    done = patch.apply() if args.action == "apply" else patch.revert()
    outcome = "patched" if args.action == "apply" else "as they were released"
    print(f"{where} are {outcome}{'' if done else ' already'}.")
    return 0
