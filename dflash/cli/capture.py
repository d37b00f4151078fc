"""`dflash capture`: the target's features of a run's conversations, computed once and kept on disk."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import hide_loading_bars, pick_device, whole_number
from dflash.errors import UserError
from dflash.layer_ids import default_layer_ids

if TYPE_CHECKING:
    from dflash.complaints import Complaint
    from dflash.config import TrainConfig
    from dflash.data.load import Loaded
    from dflash.features.capture_record import CaptureReport
    from dflash.target import TargetModel


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "capture",
        help="compute a run's target features once, to train from disk",
        description="Run the target over all conversations of a training config and write the features to a folder, "
        "from which `dflash train CONFIG features.source=cache features.cache=DIR` trains without the target's layers. "
        "Running the same command again continues where the last run stopped, and adds conversations that are new.",
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
    from dflash.features.capture_record import finished_before, request_key
    from dflash.recipes import resolve_recipe

    config = load_config(resolve_recipe(args.config), args.overrides, also=_complaints)
    out = _out(args.out, config)
    key = request_key(config, _layer_ids(config))
    done = key and finished_before(out, key)
    report, rejected = done or _capture(args, config, out, key)
    if args.json:
        print(json.dumps({"out": str(out), "rejected": rejected, **asdict(report)}))
    else:
        print(
            f"{out}: {report.documents} conversations written ({report.tokens} tokens, {report.bytes / 2**20:.0f} MiB "
            f"in {report.shards} shards), {report.resumed} were there already, {rejected} cannot be used.\n"
            f"Train from them: {_train_command(args, config, out)}"
        )
    return 0


def _capture(
    args: argparse.Namespace, config: "TrainConfig", out: Path, key: str | None
) -> "tuple[CaptureReport, int]":
    """Capture what is missing, and note under `key` that nothing is any more."""
    device = pick_device(config.run.device)

    from dflash.features.capture import capture
    from dflash.features.capture_record import note_finished
    from dflash.target import TargetModel

    hide_loading_bars()
    name, revision = config.target.name, config.target.revision
    target = TargetModel.load(name, dtype=config.target.dtype, device=device, revision=revision)
    loaded = _conversations(config, target)
    layer_ids = _layer_ids(config) or default_layer_ids(target.num_layers, config.draft.num_features)
    report = capture(
        config, target, layer_ids, loaded.rendered, out, shard_bytes=args.shard_mb << 20, announce=_to_stderr
    )
    if key:
        note_finished(out, key, report, len(loaded.rejects))
    return report, len(loaded.rejects)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _train_command(args: argparse.Namespace, config: "TrainConfig", out: Path) -> str:
    """What trains from the cache: the same settings, less those that belong to another source of features."""
    changes: dict[str, object] = {}
    if config.features.source != "cache":
        changes = {"features.source": "cache", "features.cache": out}
    if config.features.source == "online":
        changes |= {f"online.{name}": "null" for name in sorted(config.online.model_fields_set)}
        changes["data.min_supervised"] = config.data.min_supervised  # whose default is higher online
    kept = [override for override in args.overrides if override.partition("=")[0] not in changes]
    return shlex.join(["dflash", "train", args.config, *kept, *(f"{key}={value}" for key, value in changes.items())])


def _complaints(config: "TrainConfig") -> "list[Complaint]":
    """What `dflash train` would say about data, draft and target, before any of them is loaded."""
    from dflash.target_facts import target_facts
    from dflash.training.draft_checks import start_complaints
    from dflash.training.preflight import target_complaints
    from dflash.training.readiness import source_complaints, target_source_complaints

    facts = target_facts(config.target.name, config.target.revision)
    return [
        *_of_answers(config),
        *(target_complaints(config, facts) if facts else ()),
        *target_source_complaints(config),
        *source_complaints(config),
        *start_complaints(config, facts),
    ]


def _of_answers(config: "TrainConfig") -> "list[Complaint]":
    from dflash.complaints import Complaint

    if config.features.source != "online" or not config.online.regenerate:
        return []
    return [
        Complaint(
            ("online.regenerate",),
            "online.regenerate = True has servers give the answers when training begins, so that there is nothing to "
            "capture yet: make them with `dflash regenerate` and name its file in data.train, or set "
            "online.regenerate=false.",
        )
    ]


def _out(given: Path | None, config: "TrainConfig") -> Path:
    """The cache's folder: from the command line or from the config, which must not contradict each other."""
    folders = [Path(folder).expanduser() for folder in (given, config.features.cache) if folder is not None]
    if not folders:
        raise UserError("No folder for the features was given: add --out DIR, or set features.cache in the config.")
    if folders[0].resolve() != folders[-1].resolve():
        raise UserError(
            f"--out {str(given)!r} contradicts features.cache = {config.features.cache!r} of the config: drop one."
        )
    return folders[0]


def _layer_ids(config: "TrainConfig") -> tuple[int, ...]:
    """The layers that the run's draft will ask for; empty where the target is not here yet."""
    from dflash.online.captured_layers import captured_layers
    from dflash.target_facts import target_facts

    return captured_layers(config, target_facts(config.target.name, config.target.revision))


def _conversations(config: "TrainConfig", target: "TargetModel") -> "Loaded":
    """Every conversation that training would see, held-out ones included.

    Raises:
        UserError: a source cannot be read, or none of its conversations can be used.
    """
    from dflash.data.load import load_conversations

    loaded = load_conversations(config.data, target.tokenizer, progress=True)
    if not loaded.rendered:
        reason, count = loaded.reasons[0]
        raise UserError(
            f"None of the conversations in {', '.join(config.data.train)} can be used, {count} of them because: "
            f"{reason}; `dflash data inspect` shows them."
        )
    return loaded
