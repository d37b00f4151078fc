"""`dflash engines`: the Python environment in which SGLang and Mooncake serve a training run."""

import argparse
import json
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "engines",
        help="install or check the environment that online training serves the target from",
        description="SGLang needs other versions of torch and transformers than training does, so it lives in a Python "
        "environment of its own, with Mooncake and the plugin that captures features.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    install = actions.add_parser(
        "install",
        help="build the environment, or bring it up to date",
        description="Build the environment: about 3 GB and 2 minutes for a CPU. Running it again is quick, and it "
        "completes what was interrupted. The CUDA form has not been run yet. A patched SGLang (`dflash patch`) is kept: "
        "beside it only the capture plugin is installed.",
    )
    _add_place(install)
    install.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="interpreter to build it with; 3.11 is what was tested"
    )
    install.set_defaults(run=run_install, kept="what was installed is kept: run the same command again to go on.")
    check = actions.add_parser(
        "check",
        help="prove that SGLang, Mooncake and the plugin work in it",
        description="Start the environment's Python, import the engines and load the plugin as a server does. Exits "
        "with 1 when something does not work.",
    )
    _add_place(check)
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(run=run_check, kept="nothing was changed.")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what it serves on; left out, what this machine has")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="its folder; left out, the user's cache folder")


def run_install(args: argparse.Namespace) -> int:
    from dflash.online.environment import EngineEnvironment

    environment = EngineEnvironment.at(args.dir, args.device)
    done = environment.install(args.python)
    print(f"{environment.folder}: {'installed' if done else 'was complete already'}.")
    return 0


def run_check(args: argparse.Namespace) -> int:
    from dflash.online.environment import EngineEnvironment

    environment = EngineEnvironment.at(args.dir, args.device)
    found = environment.probe()
    faults = environment.faults(found)
    if args.json:
        print(
            json.dumps({"folder": str(environment.folder), "usable": not faults, "faults": faults, **found}, indent=2)
        )
    else:
        print(f"{environment.folder}")
        for name in ("python", "sglang", "torch", "transformers", "mooncake", "dflash-workbench"):
            print(f"  {name:<16}  {found[name] or 'not installed'}")
        for fault in faults:
            print(f"  FAULT: {fault}")
        print("It works: the capture plugin is active." if not faults else "It does not work.")
    return 1 if faults else 0
