"""`dflash train`: train a draft from a config, into a run folder."""

import argparse
import json
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import check_device
from dflash.errors import UserError

if TYPE_CHECKING:
    from dflash.config import TrainConfig


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a draft for a target",
        description="Train a draft as a config file says. All settings are checked before any model is loaded. Ctrl-C "
        "or SIGTERM saves a checkpoint and stops; --resume goes on from the newest one.",
    )
    parser.add_argument(
        "config", nargs="?", help="YAML file, or the name of a shipped recipe; left out with --resume: the run's own"
    )
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs")
    parser.add_argument("--name", help="of the new run's folder; left out, the config's name and the time")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="run folder to continue, with its own config; only one "
        "you trust: torch.distributed.checkpoint unpickles its index")
    parser.add_argument("--dry-run", action="store_true", help="check, print the resolved config and stop")
    parser.set_defaults(run=run, kept="the last checkpoint is kept: go on with --resume RUN.")


def run(args: argparse.Namespace) -> int:
    from dflash.config import dump_config

    config, run_dir = _resumed(args) if args.resume else _fresh(args)
    _check_files(config)
    check_device(config.run.device)
    if args.dry_run:
        print(f"# Run folder: {run_dir}\n{dump_config(config)}", end="")
        return 0

    from dflash.training.trainer import train

    # Said by torch at every first checkpoint; one process is what is meant.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    draft = train(config, run_dir, resume=args.resume is not None)
    if _state(run_dir) == "stopped":
        print(f"Stopped; go on with: dflash train --resume {run_dir}")
        return 130
    print(f"Draft: {draft}\nTry it: dflash generate --target {config.target.name} --draft {draft} --prompt 'Hello'")
    return 0


def _fresh(args: argparse.Namespace) -> tuple["TrainConfig", Path]:
    from dflash.config import load_config
    from dflash.recipes import resolve_recipe, shipped_recipes

    if args.config is None or "=" in args.config:
        known = ", ".join(shipped_recipes()) or "none are installed"
        raise UserError(f"No config was given: give a YAML file or the name of a shipped recipe ({known}).")
    name = args.name or f"{Path(args.config).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name or name.startswith("."):
        raise UserError(
            f"Run name {name!r} is no plain folder name: use letters, digits, '-' and '_'; --runs says where."
        )
    return load_config(resolve_recipe(args.config), args.overrides), args.runs / name


def _resumed(args: argparse.Namespace) -> tuple["TrainConfig", Path]:
    from dflash.config import load_config

    # The first positional is an override here, since the run brings its own config.
    overrides = [text for text in (args.config, *args.overrides) if text is not None]
    if args.config is not None and "=" not in args.config:
        raise UserError(f"Run {str(args.resume)!r} has its own config: leave out {args.config!r}.")
    if not (args.resume / "config.yaml").is_file():
        raise UserError(f"{args.resume} is no run folder (it holds no config.yaml): give one from `{args.runs}`.")
    return load_config(args.resume / "config.yaml", overrides), args.resume


def _check_files(config: "TrainConfig") -> None:
    """Refuse missing data and a missing draft before the run folder exists and the target is loaded."""
    for path in config.data.train:
        if not Path(path).is_file():
            raise UserError(
                f"Training data {path!r} does not exist: make it with `dflash synthesize` or set data.train=[FILE,...]."
            )
    init = config.draft.init
    if init not in ("random", "warm") and not (Path(init) / "config.json").is_file():
        raise UserError(f"draft.init = {init!r} is neither 'random' nor 'warm' nor a draft folder with a config.json.")


def _state(run_dir: Path) -> str:
    return json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["state"]
