"""`dflash serve-target`: start servers and a store on this machine, for training that runs elsewhere."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dflash.config import TrainConfig
    from dflash.online.deployment import Deployment


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "serve-target",
        help="serve a target's features to training on other machines",
        description="Start the servers, and unless online.master names one the store, that a training config with "
        "features.source=online asks for, watch them, and print what the training nodes add to that config. Ends with "
        "SIGTERM or Ctrl-C, and takes everything down with it.",
        epilog="Example: dflash serve-target CONFIG online.host=10.0.0.1 online.num_servers=8 online.trainers=16",
    )
    parser.add_argument("config", help="YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings that replace the file's")
    parser.add_argument(
        "--logs", type=Path, default=Path("serve-target-logs"), metavar="DIR", help="folder for the logs of the parts"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the commands that would be started, and stop"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what the training nodes need, or with --dry-run the commands, as one "
        "JSON object"
    )
    parser.set_defaults(run=run, kept="all that was started has ended.")


def run(args: argparse.Namespace) -> int:
    from dflash.config import read_tree
    from dflash.online.serving import plan_serving
    from dflash.recipes import resolve_recipe

    path = resolve_recipe(args.config)
    config, deployment = plan_serving(read_tree(path, args.overrides), repr(str(path)))
    if args.dry_run:
        if args.json:
            print(json.dumps({"commands": dict(deployment.commands())}))
            return 0
        for name, command in deployment.commands():
            print(f"{name}: {command}")
        return 0

    from dflash.online.child import ChildFailed
    from dflash.online.engines import PartFailed
    from dflash.online.serving import serve

    def say(text: str) -> None:
        print(f"dflash: {text}", file=sys.stderr, flush=True)

    say(f"Starting {deployment.summary}; the logs are in {args.logs}.")
    try:
        serve(config, deployment, args.logs, say, lambda: _announce(config, deployment, args))
    except (PartFailed, ChildFailed) as error:
        say(str(error))
        return 1
    say("Asked to stop: all that was started has ended.")
    return 0


def _announce(config: "TrainConfig", deployment: "Deployment", args: argparse.Namespace) -> None:
    """Print what training needs to know, now that everything serves."""
    from dflash.online.serving import overrides_for_ranks

    overrides = overrides_for_ranks(config, deployment)
    if args.json:
        places = {"servers": deployment.endpoints.servers, "master": deployment.endpoints.master}
        print(json.dumps({**places, "overrides": overrides}), flush=True)
        return
    print(f"Serving. On each training node: torchrun ... -m dflash train {args.config} {shlex.join(overrides)}")
    print("With more than one such node, online.servers is the list of all their servers.")
    if config.online.host is None:
        print("Only this machine can reach them: set online.host to an address of it for others.")
    sys.stdout.flush()
