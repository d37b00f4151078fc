"""`dflash capture`: the target's features of a run's conversations, computed once and kept on disk."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import pick_device, whole_number
from dflash.errors import UserError

if TYPE_CHECKING:
    from dflash.config import TrainConfig
    from dflash.data.template import Rendered
    from dflash.target import TargetModel


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "capture",
        help="compute a run's target features once, to train from disk",
        description="Run the target over all conversations of a training config and write the features to a folder, from "
        "which `dflash train CONFIG features.source=cache features.cache=DIR` trains without the target's layers. Running "
        "the same command again continues where the last run stopped, and adds conversations that are new.",
    )
    parser.add_argument("config", help="YAML file, or the name of a shipped recipe: the one to train with")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings that replace the file's")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the cache; left out, the config's features.cache"
    )
    parser.add_argument(
        "--shard-mb", type=whole_number(1), default=256, metavar="MB", help="largest size of a shard, in MiB"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run, kept="complete shards are kept: give the same command again to go on.")


def run(args: argparse.Namespace) -> int:
    from dflash.config import load_config
    from dflash.recipes import resolve_recipe

    config = load_config(resolve_recipe(args.config), args.overrides)
    out = _out(args.out, config)
    device = pick_device(config.run.device)

    from transformers.utils.logging import disable_progress_bar

    from dflash.features.capture import capture
    from dflash.target import TargetModel

    disable_progress_bar()  # of reading local weights
    name, revision = config.target.name, config.target.revision
    target = TargetModel.load(name, dtype=config.target.dtype, device=device, revision=revision)
    report = capture(
        config,
        target,
        _layer_ids(config, target),
        _conversations(config, target),
        out,
        shard_bytes=args.shard_mb << 20,
    )
    if args.json:
        print(json.dumps({"out": str(out), **asdict(report)}))
    else:
        print(
            f"{out}: {report.documents} conversations written ({report.tokens} tokens, {report.bytes / 2**20:.0f} MiB in "
            f"{report.shards} shards), {report.resumed} were there already.\n"
            f"Train from them: dflash train {args.config} {' '.join(args.overrides)} features.source=cache "
            f"features.cache={out}"
        )
    return 0


def _out(given: Path | None, config: "TrainConfig") -> Path:
    """The cache's folder: from the command line or from the config, which must not contradict each other."""
    configured = config.features.cache
    if given is None and configured is None:
        raise UserError("No folder for the features was given: add --out DIR, or set features.cache in the config.")
    if given is not None and configured is not None and given.resolve() != Path(configured).resolve():
        raise UserError(f"--out {str(given)!r} contradicts features.cache = {configured!r} of the config: drop one.")
    return given or Path(configured)


def _layer_ids(config: "TrainConfig", target: "TargetModel") -> list[int]:
    """The layers that the run's draft will ask for."""
    from dflash.model.draft import DFlashDraft
    from dflash.target import default_layer_ids

    draft = config.draft
    if draft.init not in ("random", "warm"):
        return DFlashDraft.from_pretrained(draft.init).config.target_layer_ids
    return draft.target_layer_ids or default_layer_ids(target.num_layers, draft.num_features)


def _conversations(config: "TrainConfig", target: "TargetModel") -> list["Rendered"]:
    """Every conversation that training would see, held-out ones included."""
    from dflash.data.conversations import read_conversations
    from dflash.data.template import render

    data = config.data
    rendered = [
        render(conversation, target.tokenizer, data.max_length)
        for path in data.train
        for conversation in read_conversations(path)
    ]
    return [item for item in rendered if item.supervised >= data.min_supervised]
