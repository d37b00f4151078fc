"""Tiny training runs for the tests of the trainer: config, data, ranks in real processes, what a run left behind."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from dflash.config import TrainConfig, parse_config
from dflash.model.draft import DFlashDraft
from dflash.training.checkpoint import CheckpointStore
from dflash.training.reporter import Reporter
from dflash.training.run_folder import RunFolder
from dflash.training.trainer import Trainer
from dflash.training.world import World

ALONE = World(0, 1, torch.device("cpu"))
CLOCK = ("tokens_per_s", "data_wait_percent", "memory_gib", "decoded_seconds", "online")  # differ from run to run


def write_conversations(path: Path, count: int = 12) -> str:
    with open(path, "w") as file:
        for i in range(count):
            answer = "one two three four " * 2 + "abcdefgh"[i % 8] * (i % 5)
            messages = [{"role": "user", "content": f"count {i}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": f"c{i}", "messages": messages}) + "\n")
    return str(path)


def tiny_config(target: str, conversations: str, /, **sections) -> TrainConfig:
    """fp32 and six steps of two rows; `sections` adds to or replaces settings."""
    tree = {
        "target": {"name": target, "dtype": "float32"},
        "draft": {"num_hidden_layers": 2, "num_features": 3, "block_size": 4},
        "data": {"train": [conversations], "validation_size": 2, "max_length": 128},
        "blocks": {"num_anchors": 8},
        "run": {"max_steps": 6, "batch_size": 2, "autocast": False},
        "checkpoint": {"every": 2},
        "metrics": {"log_every": 1, "validate_every": 3},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree, "test")


@contextmanager
def open_trainer(config: TrainConfig, path: Path):
    """A trainer of one process, to be looked into."""
    run = RunFolder(path) if path.exists() else RunFolder.create(path, config)
    with Reporter(run, config, ALONE, progress=False) as reporter:
        store = CheckpointStore(run.checkpoints, config.checkpoint.keep, ALONE)
        yield Trainer(config, run, ALONE, reporter, store, store.newest())


def ask_to_stop_behind(trainer: Trainer, step: int) -> None:
    """SIGTERM reaches this process when all is done that belongs to a step."""
    after_step = trainer._after_step

    def and_then():
        cut_short = after_step()
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return cut_short

    trainer._after_step = and_then


def metrics(run_dir: Path, kind: str | None = None) -> list[dict]:
    """Everything logged except what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if kind in (None, line["kind"])]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return DFlashDraft.from_pretrained(folder, dtype="float32").state_dict()


def torchrun(ranks: int, script: str, *arguments, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run Python source on `ranks` gloo processes, as `torchrun` does; one thread each."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    source = Path(arguments[0]) / f"ranks{ranks}.py"
    source.write_text(script)
    return subprocess.run(
        [sys.executable, *launcher, str(source), *map(str, arguments)],
        env=environment,
        timeout=timeout,
        capture_output=True,
        text=True,
    )
