"""Can this machine start a run? Files, packages and free disk that the config asks for, looked at and not opened."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dflash.complaints import Complaint
from dflash.config import TrainConfig
from dflash.data.sources import is_hub_id, is_jsonl
from dflash.devices import memory_of, nvidia_driver_is_here
from dflash.errors import UserError
from dflash.hub import hub_is_reachable
from dflash.target_facts import target_is_here
from dflash.training.estimate import Estimate
from dflash.training.metrics import check_adapters
from dflash.training.run_folder import RunFolder


def machine_complaints(config: TrainConfig, run_dir: Path, numbers: Estimate) -> Iterator[Complaint]:
    """What is missing here for a run of which `numbers` are estimated."""
    yield from target_source_complaints(config)
    yield from source_complaints(config)
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
    if config.run.device.startswith("cuda") and not nvidia_driver_is_here():
        yield Complaint(
            ("run.device",),
            f"run.device = {config.run.device!r} needs an NVIDIA driver; none seems to be here: set run.device=auto.",
        )


def memory_doubts(config: TrainConfig, numbers: Estimate, kind: str) -> Iterator[Complaint]:
    """More memory than there is, estimated at its largest: a doubt, since rows may be shorter than data.max_length."""
    there = memory_of(kind)
    ranks = numbers.world_size if kind == "cpu" else 1  # all ranks share the machine's memory, each has its own GPU
    needed = ranks * (numbers.device_bytes + (numbers.host_bytes if kind == "cpu" else 0))
    if there is not None and needed > there:
        where = "this machine" if kind == "cpu" else "the GPU here"
        share = f" on {ranks} ranks" if ranks > 1 else ""
        yield Complaint(
            ("run.micro_batch_size",),
            f"run.micro_batch_size = {config.run.micro_batch_size} takes up to {needed / 2**30:.1f} GiB{share}, but "
            f"{where} has {there / 2**30:.1f} GiB: lower it, blocks.num_anchors or data.max_length.",
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


def source_complaints(config: TrainConfig) -> Iterator[Complaint]:
    """Data that is not there."""
    sources = config.data.train
    missing = [s for s in sources if not Path(s).exists() and not is_hub_id(s)]
    if missing:
        made = "make JSONL files with `dflash synthesize`, or " if all(map(is_jsonl, missing)) else ""
        yield Complaint(
            ("data.train",),
            f"data.train = {sources} names {' and '.join(map(repr, missing))}, which "
            f"{'does' if len(missing) == 1 else 'do'} not exist: {made}set data.train=[FILE,...].",
        )
    distant = [s for s in sources if is_hub_id(s)]
    if distant and not hub_is_reachable():
        yield Complaint(
            ("data.train",),
            f"data.train names {' and '.join(map(repr, distant))}, and the Hugging Face hub cannot be reached: give "
            "files or folders, or start when it can.",
        )


def target_source_complaints(config: TrainConfig) -> Iterator[Complaint]:
    """A target that would have to be downloaded from a hub out of reach."""
    name, revision = config.target.name, config.target.revision
    try:
        here = target_is_here(name, revision)
    except UserError:
        return  # no target at all, which is complained about as such
    if not here and not hub_is_reachable():
        yield Complaint(
            ("target",),
            f"target.name = {name!r} is neither a folder nor in the local cache, and the Hugging Face hub cannot be "
            "reached: give a folder, or start when it can.",
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
