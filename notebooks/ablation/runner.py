"""The runs behind notebooks 02 to 04: `dflash capture` once, `dflash train` for each value and seed, then judging.

What is finished is skipped and what was interrupted is resumed, so the same command goes on after a crash.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from ablation.results import RunResult, append_result, read_results
from ablation.settings import Ablation
from dflash.cpu import cpu_name
from dflash.errors import UserError
from dflash.evaluation.held_out import score_held_out
from dflash.target import TargetModel


Command = tuple[str, ...]


def in_a_process(command: Command) -> None:
    """Run a `dflash` command of this very installation in a process of its own.

    Raises:
        UserError: it failed; its own words went to the terminal.
    """
    program, *arguments = command
    finished = subprocess.run([sys.executable, "-m", program, *arguments], stdout=subprocess.DEVNULL)
    _check(command, finished.returncode)


def in_this_process(command: Command) -> None:
    """The same without a new process, whose start takes most of the time of a tiny run."""
    from dflash.cli.main import main

    _check(command, main([*command[1:]]))


@dataclass(frozen=True)
class Runner:
    """Paths are relative to the current folder, as in the commands that it runs and records.

    `config` is the base config, `features` the folder of its captured features, `runs` holds the run folders and
    `results` the result files. `extra` overrides the base config in every run; `anchors` is the number of blocks per
    held-out conversation that judge a draft. `execute` runs a `dflash` command, or raises UserError.
    """

    config: Path
    features: Path
    runs: Path
    results: Path
    extra: tuple[str, ...] = ()
    anchors: int = 32
    execute: Callable[[Command], None] = in_a_process

    def file(self, ablation: Ablation) -> Path:
        return self.results / f"{ablation.name}.jsonl"

    def capture(self) -> None:
        """Compute the features of all runs, once; a folder that holds some of them is completed."""
        self.execute(self.capture_command)

    def run(self, ablation: Ablation, values: Sequence[float], seed: int) -> None:
        """Make and judge what is missing of these values with this seed."""
        for value in values:
            if (value, seed) in {result.key for result in read_results(self.file(ablation))}:
                continue
            run_dir = self._train(ablation, value, seed)
            append_result(self.file(ablation), self._judged(ablation, value, seed, run_dir))
            print(f"{ablation.number}: {ablation.override(value)} with seed {seed} is done.")

    @property
    def capture_command(self) -> Command:
        return ("dflash", "capture", str(self.config), *self.extra, "--out", str(self.features))

    def train_command(self, ablation: Ablation, value: float, seed: int) -> Command:
        changed = () if value == ablation.baseline else (ablation.override(value),)
        settings = ("features.source=cache", f"features.cache={self.features}", *changed, f"run.seed={seed}")
        where = ("--runs", str(self.runs), "--name", ablation.run_name(value, seed))
        return ("dflash", "train", str(self.config), *self.extra, *settings, *where)

    def _train(self, ablation: Ablation, value: float, seed: int) -> Path:
        """The folder of a finished run."""
        run_dir = self.runs / ablation.run_name(value, seed)
        if _state(run_dir) != "finished":
            begun = any(run_dir.glob("checkpoints/step_*"))
            self.execute(("dflash", "train", "--resume", str(run_dir)) if begun else self._fresh(ablation, value, seed))
        if _state(run_dir) != "finished":
            raise UserError(f"Run {str(run_dir)!r} was stopped: give the same command again to go on.")
        return run_dir

    def _fresh(self, ablation: Ablation, value: float, seed: int) -> Command:
        """The command for a new run, in whose place nothing of one lies that died before its first checkpoint."""
        (self.runs / ablation.run_name(value, seed) / "metrics.jsonl").unlink(missing_ok=True)
        return self.train_command(ablation, value, seed)

    def _judged(self, ablation: Ablation, value: float, seed: int, run_dir: Path) -> RunResult:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        if float(_setting(config, ablation.setting)) != value:
            raise UserError(f"Run {str(run_dir)!r} was not made with {ablation.override(value)}: remove that folder.")
        steps = [record for record in _metrics(run_dir) if record["kind"] == "train" and "slot_count" in record]
        environment = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
        return RunResult(
            value=value,
            seed=seed,
            commands=(shlex.join(self.capture_command), shlex.join(self.train_command(ablation, value, seed))),
            config=config,
            steps=steps[-1]["step"],
            blocks_per_step=mean(record["slot_count"][0] for record in steps),
            train_loss=steps[-1]["loss"],
            anchors=self.anchors,
            date=date.today().isoformat(),
            machine={"cpu": cpu_name(), **environment},
            held_out={
                size: tuple(score_held_out(run_dir, self._target, num_anchors=self.anchors, block_size=size))
                for size in ablation.used
            },
        )

    @cached_property
    def _target(self) -> TargetModel:
        """Embedding and head alone: the features come from the cache."""
        settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))["target"]
        return TargetModel.load(settings["name"], dtype=settings.get("dtype", "bfloat16"), layers=False)


def _check(command: Command, code: int) -> None:
    if code:
        raise UserError(f"`{shlex.join(command)}` ended with code {code}: see its message above.")


def _state(run_dir: Path) -> str | None:
    try:
        return json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["state"]
    except FileNotFoundError:
        return None


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _setting(config: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return config[section][key]
