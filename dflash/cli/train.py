"""`dflash train`: train a draft from a config, into a run folder."""

import argparse
import json
import os
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.dry_run import Plan, print_plan
from dflash.cli.options import check_device, whole_number, words
from dflash.errors import UserError
from dflash.online.rank import enter_rank, is_launched

if TYPE_CHECKING:
    from dflash.config import TrainConfig

_RUNS = Path("runs")  # compared by identity, to tell the default from the same folder given


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
    parser.add_argument("--runs", type=Path, default=_RUNS, metavar="DIR", help="folder that holds the runs")
    parser.add_argument("--name", type=words, help="of the new run's folder; left out, the config's name and the time")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="run folder to continue, with its own config")
    plan = parser.add_argument_group("planning")
    plan.add_argument(
        "--dry-run",
        action="store_true",
        help="check, print the resolved config and what it amounts to, and stop; a wrong config exits with 2, what "
        "only this machine lacks (files, packages, disk) is listed as not ready",
    )
    plan.add_argument(
        "--world-size", "--gpus", type=whole_number(1), metavar="N", help="ranks that the dry run assumes; left out, "
        "as torchrun started them, else 1; not for online runs that start their own, which are told by online.trainers"
    )
    plan.add_argument("--json", action="store_true", help="print the dry run as one JSON object")
    parser.set_defaults(run=run, kept="the last checkpoint is kept: go on with --resume RUN.")


def run(args: argparse.Namespace) -> int:
    if is_launched():
        enter_rank()
    plan = _plan(args)
    if args.dry_run:
        print_plan(plan, as_json=args.json)
        return 0
    if plan.config.features.source == "online" and plan.config.online.servers is None and not is_launched():
        return _launch(plan, args)
    if plan.estimate.world_size == 1:
        check_device(plan.config.run.device)  # of several ranks, each finds its own
    if _speaks():
        for note in plan.notes:
            print(f"dflash: note: {note}", file=sys.stderr)
    return _train(plan.config, plan.run_dir, resume=args.resume is not None)


def _launch(plan: Plan, args: argparse.Namespace) -> int:
    """Start and supervise servers, store and ranks, each of which runs this command again."""
    from dflash.online.child import ChildFailed
    from dflash.online.endpoints import Endpoints
    from dflash.online.engines import PartFailed
    from dflash.online.launcher import Launch, Launcher

    if "RANK" in os.environ:
        Endpoints.of(plan.config)  # says why torchrun is wrong here
    deployment = plan.deployment or _plan_of_new_target(plan.config, args).deployment
    fresh, again = _rank_arguments(args, plan.run_dir)
    launch = Launch(plan.config, deployment, plan.run_dir, args.resume is not None, fresh, again)
    try:
        draft = Launcher(launch, lambda text: print(f"dflash: {text}", file=sys.stderr)).run()
    except (PartFailed, ChildFailed) as error:
        begun = (plan.run_dir / "config.yaml").is_file()  # else nothing can be gone on from
        hint = f"\ndflash: go on with: dflash train --resume {plan.run_dir}" if begun else ""
        print(f"dflash: {error}{hint}", file=sys.stderr)
        return 1
    if draft is None and not (plan.run_dir / "config.yaml").is_file():
        print("Stopped before training began.")
        return 130
    return tell_end(plan.config, plan.run_dir, draft)


def _plan_of_new_target(config: "TrainConfig", args: argparse.Namespace) -> Plan:
    """The plan for a hub target of which nothing was known here: what its servers need is in its config.json."""
    from dflash.target import load_target_config

    load_target_config(config.target.name, config.target.revision)  # leaves it in the local cache
    plan = _plan(args)
    if plan.deployment is None:
        raise UserError(f"The layers of target {config.target.name!r} are not known: set draft.target_layer_ids.")
    return plan


def _train(config: "TrainConfig", run_dir: Path, *, resume: bool) -> int:
    from dflash.training.trainer import train

    # Said by torch at every first checkpoint; one process is what is meant.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    draft = train(config, run_dir, resume=resume)
    if not _speaks() or is_launched():
        return 0  # the first rank, whose run folder it is, tells how it ended, or the launcher does
    return tell_end(config, run_dir, None if _state(run_dir) == "stopped" else draft)


def tell_end(config: "TrainConfig", run_dir: Path, draft: Path | None) -> int:
    """Print how to go on from a run that was stopped (there is no `draft`) or finished; returns the exit code."""
    if draft is None:
        print(f"Stopped; go on with: dflash train --resume {run_dir}")
        return 130
    print(f"Draft: {draft}\nTry it: dflash generate --target {config.target.name} --draft {draft} --prompt 'Hello'")
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    """The config, checked in every respect, with what was derived on the way.

    Raises:
        UserError: all that is wrong with it, and unless this is a dry run, all that this machine lacks for it.
    """
    from dflash.config import read_tree
    from dflash.training.plan import plan_run

    resumed = args.resume is not None
    path, overrides, run_dir = _resumed(args) if resumed else _fresh(args)
    plan = plan_run(
        read_tree(path, overrides),
        repr(str(path)),
        run_dir,
        _world_size(args),
        resumed=resumed,
        new_folder=not resumed and _speaks(),  # of several ranks the first one may have made the folder already
        guess_device=args.dry_run,
    )
    if args.world_size and plan.deployment is not None:
        raise UserError(
            "--world-size/--gpus counts ranks, and this run starts its own: leave it out; online.trainers is their "
            "number, online.num_servers times online.tensor_parallel that of the GPUs that serve."
        )
    plan.refuse(also_lacking=not args.dry_run)
    return Plan(
        plan.config,
        run_dir,
        plan.facts,
        plan.estimate,
        notes=list(plan.notes),
        not_ready=[complaint.sentence for complaint in plan.lacking],
        deployment=plan.deployment,
        rank_arguments=tuple(_rank_arguments(args, run_dir)[0]),
    )


def _rank_arguments(args: argparse.Namespace, run_dir: Path) -> tuple[list[str], list[str]]:
    """What each rank that is launched is given: to begin this run, and to go on with it."""
    overrides = [text for text in (args.config, *args.overrides) if text is not None and "=" in text]
    again = ["train", "--resume", str(run_dir), *overrides]
    if args.resume is not None:
        return again, again
    from dflash.recipes import resolve_recipe

    config = str(resolve_recipe(args.config))
    return ["train", config, *overrides, f"--runs={run_dir.parent}", f"--name={run_dir.name}"], again


def _world_size(args: argparse.Namespace) -> int | None:
    """Ranks to plan for; None where no torchrun started this process, which then is the only one, or starts others."""
    for option, given in (("--world-size/--gpus", args.world_size), ("--json", args.json)):
        if given and not args.dry_run:
            raise UserError(f"{option} only belongs to a dry run: add --dry-run, or leave it out.")
    if args.world_size:
        return args.world_size
    started = os.environ.get("WORLD_SIZE")
    if started is None:
        return None
    if not started.isdecimal() or int(started) < 1:
        raise UserError(f"WORLD_SIZE = {started!r} in the environment is no number of ranks: unset it or use torchrun.")
    return int(started)


def _fresh(args: argparse.Namespace) -> tuple[Path, list[str], Path]:
    """Config file, overrides and folder of a new run."""
    from dflash.recipes import resolve_recipe, shipped_recipes

    if args.config is None or "=" in args.config:
        known = ", ".join(shipped_recipes()) or "none are installed"
        raise UserError(f"No config was given: give a YAML file or the name of a shipped recipe ({known}).")
    name = args.name or f"{Path(args.config).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name or name.startswith("."):
        raise UserError(
            f"Run name {name!r} is no plain folder name: use letters, digits, '-' and '_'; --runs says where."
        )
    return resolve_recipe(args.config), args.overrides, args.runs / name


def _resumed(args: argparse.Namespace) -> tuple[Path, list[str], Path]:
    """Config file, overrides and folder of a run that goes on."""
    for option, given in (("--name", args.name is not None), ("--runs", args.runs is not _RUNS)):
        if given:
            raise UserError(f"{option} belongs to a new run, and {args.resume} has its folder already: leave it out.")
    # The first positional is an override here, since the run brings its own config.
    overrides = [text for text in (args.config, *args.overrides) if text is not None]
    if args.config is not None and "=" not in args.config:
        raise UserError(f"Run {str(args.resume)!r} has its own config: leave out {args.config!r}.")
    if not (args.resume / "config.yaml").is_file():
        there = _RUNS / args.resume.name
        such = str(there) if (there / "config.yaml").is_file() else f"the folder of a run, such as {_RUNS / 'NAME'}"
        raise UserError(f"--resume {str(args.resume)!r} is no run folder (it holds no config.yaml): give {such}.")
    return args.resume / "config.yaml", overrides, args.resume


def _speaks() -> bool:
    """Whether this is the one of the ranks that torchrun started which talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _state(run_dir: Path) -> str:
    return json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["state"]
