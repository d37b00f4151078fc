"""Runs of the whole command, `dflash train` with everything it starts, to be looked at and disturbed from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from tiny_runs import write_conversations

import dflash
from dflash.config import parse_config
from dflash.online.ports import free_port, why_unusable
from dflash.online.processes import children
from dflash.target import TargetModel
from dflash.training.order import DataOrder
from dflash.training.run_data import load_run_data
from dflash.training.run_folder import RunFolder
from dflash.training.trainer import train
from dflash.training.world import World


def online_tree(target: str, folder: Path, *, servers: int = 2, ranks: int = 2, steps: int = 30, **online) -> dict:
    """Settings of a tiny run whose parts listen on free ports; `online` adds to that section."""
    port = free_port_block(servers)
    return {
        "target": {"name": target, "dtype": "bfloat16"},
        "draft": {"num_hidden_layers": 2, "num_features": 3, "block_size": 4},
        "data": {
            "train": [write_conversations(folder / "talk.jsonl", 40)],
            "validation_size": 4,
            "max_length": 128,
            "min_supervised": 4,
        },
        "features": {"source": "online"},
        "online": {
            "num_servers": servers,
            "trainers": ranks,
            "in_flight": 4,
            "port": port,
            "master_port": free_port(),
            "metrics_port": free_port(),
            "store_gib": 1 / 64,
            **online,
        },
        "blocks": {"num_anchors": 8},
        "run": {"max_steps": steps, "batch_size": 4},
        "checkpoint": {"every": 5},
        "metrics": {"log_every": 1, "validate_every": 15},
    }


def free_port_block(count: int) -> int:
    """The first of so many neighbouring ports, all free right now."""
    while True:
        first = free_port()
        if first + count < 65535 and not any(why_unusable("127.0.0.1", first + i) for i in range(count)):
            return first


class Launched:
    """One `dflash` command in a process of its own, and the run folder it writes."""

    def __init__(
        self,
        tree: dict,
        folder: Path,
        *arguments: str,
        step_seconds: float = 0.0,
        variables: dict[str, str] | None = None,
        stderr: int = subprocess.STDOUT,
    ) -> None:
        """`arguments` replace those that begin a new run in folder/runs/run; a step takes `step_seconds` at least.

        `stderr`: a file descriptor, for which that stream is lacking in `said`.
        """
        self.folder, self.run = folder, folder / "runs" / "run"
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(tree))
        self.records = folder / "records"
        self.records.mkdir(exist_ok=True)
        here = Path(__file__).parent
        path = os.pathsep.join(map(str, (here, here.parent, Path(dflash.__file__).parents[1])))
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "RECORDS": str(self.records),
            "STEP_SECONDS": str(step_seconds),
            **(variables or {}),
        }
        words = arguments or ("train", str(config), "--runs", str(self.run.parent), "--name", self.run.name)
        self.output = folder / "output.txt"
        with open(self.output, "ab") as output:
            self._output_start = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "recording_dflash", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        return self.output.read_text()[self._output_start :]

    def wait(self, seconds: float = 900) -> int:
        return self.process.wait(seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 900) -> None:
        """Wait for something; the command must not end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.said}"
            time.sleep(0.05)

    def until_step(self, step: int) -> None:
        self.until(lambda: self.step() >= step)

    def step(self) -> int:
        """The last step that was trained."""
        return max((record["step"] for record in self.metrics()), default=0)

    def metrics(self) -> list[dict]:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def losses(self) -> dict[tuple[str, int], float]:
        return {(r["kind"], r["step"]): r["loss"] for r in self.metrics() if "loss" in r}

    def status(self) -> dict:
        return json.loads((self.run / "status.json").read_text())

    def trained(self, *, went_back: bool = False) -> dict[int, list[str]]:
        """Conversations of each step, over all ranks; no rank may have trained a step twice.

        `went_back`: ranks were killed and went on from a checkpoint, so each step counts as it was trained at last.
        """
        steps: dict[int, list[str]] = {}
        for path in sorted(self.records.glob("rank-*.txt")):
            records = [line.split() for line in path.read_text().splitlines()]
            last = {int(step): names for step, *names in records}
            assert went_back or len(last) == len(records), f"{path.name} has a step twice:\n{path.read_text()}"
            for step, names in last.items():
                steps.setdefault(step, []).extend(names)
        return steps

    def log(self, name: str) -> str:
        return (self.run / "logs" / name).read_text()

    def end(self) -> None:
        """Whatever happened: nothing of it is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def descendants(pid: int) -> list[int]:
    """Every process that this one started, directly or not."""
    found = children(pid)
    return [*found, *(each for child in found for each in descendants(child))]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def alive(pid: int) -> bool:
    """Whether it is there and no zombie: nobody may reap it in a container without an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def in_process(tree: dict, folder: Path) -> tuple[dict[tuple[str, int], float], dict[int, list[str]]]:
    """Losses of the same run with the target in this process, and the conversations of each step."""
    plain = {name: section for name, section in tree.items() if name != "online"} | {"features": {}}
    config = parse_config(plain, "in process")
    run = RunFolder(folder / "in-process")
    train(config, run.path, progress=False)
    records = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    losses = {(record["kind"], record["step"]): record["loss"] for record in records if "loss" in record}
    target = TargetModel.load(config.target.name, layers=False)
    data = load_run_data(config, target, run, World(0, 1, torch.device("cpu")))
    order, size = DataOrder(data.training, config, 0, 1), config.run.batch_size
    return losses, {step: order.conversations((step - 1) * size) for step in range(1, config.run.max_steps + 1)}
