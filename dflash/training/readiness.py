"""Can this machine start a run? Files, packages and free disk that the config asks for, looked at and not opened."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dflash.complaints import Complaint
from dflash.config import DraftConfig, TrainConfig
from dflash.data.sources import is_hub_id, is_jsonl
from dflash.errors import UserError
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import FROM_SCRATCH, read_draft_shape
from dflash.training.estimate import Estimate
from dflash.training.metrics import check_adapters
from dflash.training.run_folder import RunFolder


def machine_complaints(
    config: TrainConfig, facts: TargetFacts | None, run_dir: Path, numbers: Estimate
) -> Iterator[Complaint]:
    """What is missing here for a run of which `numbers` are estimated."""
    yield from data_complaints(config, numbers.conversations)
    yield from start_complaints(config, facts)
    if config.features.source == "cache" and config.features.cache is not None:
        yield from _cache(config)
    prompts = config.metrics.decode_prompts
    if prompts is not None and not Path(prompts).is_file():
        yield Complaint(
            ("metrics.decode_prompts",),
            f"metrics.decode_prompts = {prompts!r} does not exist: give a JSONL file of prompts, or remove it to "
            "decode held-out conversations.",
        )
    try:
        check_adapters(config.metrics)
    except UserError as error:
        yield Complaint(("metrics.adapters",), str(error))
    if numbers.disk_bytes is not None:
        yield from _disk(config, run_dir, numbers.disk_bytes)


def device_complaints(config: TrainConfig) -> Iterator[Complaint]:
    """A GPU that seems not to be here, judged by NVIDIA's driver: a guess for planning, torch has the last word."""
    there = any(Path(sign).exists() for sign in ("/proc/driver/nvidia/version", "/dev/dxg"))
    if config.run.device.startswith("cuda") and not there:
        yield Complaint(
            ("run.device",),
            f"run.device = {config.run.device!r} needs an NVIDIA driver; none seems to be here: set run.device=auto.",
        )


def folder_complaints(run_dir: Path) -> Iterator[Complaint]:
    """A new run's folder that is taken or cannot be made."""
    if taken := RunFolder(run_dir).taken():
        yield Complaint(("run",), taken)
    there = run_dir.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK) or os.statvfs(there).f_flag & os.ST_RDONLY:
        yield Complaint(
            ("run",), f"Run folder {str(run_dir)!r} cannot be made in {str(there)!r}: give another folder with --runs."
        )


def _cache(config: TrainConfig) -> Iterator[Complaint]:
    """What cache.json alone can tell; weights, tokenizer and texts are compared when the cache is opened."""
    path = Path(config.features.cache) / "cache.json"
    again = "write it with `dflash capture`, or set features.source=in_process."
    if not path.is_file():
        yield Complaint(
            ("features.cache",),
            f"features.cache = {config.features.cache!r} is no feature cache (it holds no cache.json): {again}",
        )
        return
    try:
        holds = json.loads(path.read_text(encoding="utf-8"))["identity"]
        wanted = {"dtype": config.target.dtype, "max_length": config.data.max_length}
        differs = [f"{name} {holds[name]} instead of {value}" for name, value in wanted.items() if holds[name] != value]
    except (OSError, ValueError, KeyError, TypeError):
        differs = ["a cache.json that cannot be read"]
    if differs:
        yield Complaint(
            ("features.cache", "data.max_length", "target.dtype"),
            f"features.cache = {config.features.cache!r} has {' and '.join(differs)}: {again}",
        )


def data_complaints(config: TrainConfig, conversations: int | None) -> Iterator[Complaint]:
    """Sources that are not there or too small; `conversations` is their number where it is known."""
    data = config.data
    missing = [s for s in data.train if not Path(s).exists() and not is_hub_id(s)]
    if missing:
        made = "make JSONL files with `dflash synthesize`, or " if all(map(is_jsonl, missing)) else ""
        yield Complaint(
            ("data.train",),
            f"data.train = {config.data.train} names {' and '.join(map(repr, missing))}, which "
            f"{'does' if len(missing) == 1 else 'do'} not exist: {made}set data.train=[FILE,...].",
        )
    elif conversations == 0 and (data.limit is None or data.limit * len(data.train) > data.validation_size):
        # Otherwise data.limit is to blame, which is complained about already.
        yield Complaint(
            ("data.train", "data.limit", "data.validation_size"),
            f"data.validation_size = {config.data.validation_size} holds out all conversations in data.train = "
            f"{config.data.train}: lower it or add data.",
        )


def start_complaints(config: TrainConfig, facts: TargetFacts | None) -> Iterator[Complaint]:
    """The draft folder to go on from: there, whole, of this target, and of the shape that the config spells out."""
    init = config.draft.init
    if init in FROM_SCRATCH:
        return
    folder = Path(init)
    if not (folder / "config.json").is_file():
        yield Complaint(
            ("draft.init",),
            f"draft.init = {init!r} is neither 'random' nor 'warm' nor a draft folder with a config.json: choose one "
            "of those.",
        )
        return
    shape = read_draft_shape(init)
    if shape is None or not (folder / "model.safetensors").is_file():
        yield Complaint(
            ("draft.init",),
            f"draft.init = {init!r} is no whole draft: it needs a DFlash config.json and model.safetensors, as "
            "checkpoints/step_N/draft of a run has them.",
        )
        return
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if facts is not None:
        expected = {
            "hidden size": (shape.hidden_size, facts.hidden_size),
            "vocabulary": (tree.get("vocab_size"), facts.vocab_size),
            "depth of the target": (tree.get("num_target_layers"), facts.depth),
        }
        wrong = [f"{what} {its} instead of {ours}" for what, (its, ours) in expected.items() if its != ours]
        if wrong:
            yield Complaint(
                ("draft.init", "target"),
                f"draft.init = {init!r} was made for another target than {config.target.name!r} ({', '.join(wrong)}): "
                "choose a draft of this target.",
            )
    yield from _contradicting_shape(config.draft, tree)


def _contradicting_shape(draft: DraftConfig, tree: dict) -> Iterator[Complaint]:
    """A resolved config spells out every default, so only a setting that differs from its default was asked for."""
    inner = tree["dflash_config"]
    has = {
        **{name: tree.get(name) for name in ("num_hidden_layers", "block_size", "intermediate_size", "sliding_window")},
        "num_features": len(inner["target_layer_ids"]),
        "target_layer_ids": inner["target_layer_ids"],
        "mask_token_id": inner.get("mask_token_id"),
    }
    for name, value in has.items():
        asked = getattr(draft, name)
        if asked not in (None, DraftConfig.model_fields[name].default, value):
            yield Complaint(
                (f"draft.{name}", "draft.init"),
                f"draft.{name} = {asked} contradicts the draft in draft.init = {draft.init!r}, which has {value}: "
                "remove the setting.",
            )


def _disk(config: TrainConfig, run_dir: Path, disk_bytes: int) -> Iterator[Complaint]:
    """Free space where the run folder is or will be; what a resumed run has written there already counts as its own."""
    there = run_dir.absolute()
    taken = sum(p.stat().st_size for p in (there / "checkpoints").rglob("*") if p.is_file())
    while not there.exists():
        there = there.parent
    free, needed = shutil.disk_usage(there).free, disk_bytes - taken
    if free < needed:
        yield Complaint(
            ("checkpoint.keep", "draft", "optimizer", "target"),
            f"checkpoint.keep = {config.checkpoint.keep} takes up to {disk_bytes / 2**30:.1f} GiB of checkpoints, "
            f"but {there} has {free / 2**30:.1f} GiB free: free some space, lower checkpoint.keep or choose another "
            "folder with --runs.",
        )
