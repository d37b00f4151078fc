"""A run is a folder; trainer and workbench share nothing else.

    config.yaml  command.txt  environment.json  status.json  metrics.jsonl  checkpoints/step_0001000/
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dflash.config import TrainConfig, dump_config
from dflash.errors import UserError
from dflash.files import write_atomically


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path | str, config: TrainConfig) -> "RunFolder":
        """Start a new run folder.

        Raises:
            UserError: the folder already holds a run that got somewhere, or cannot be written.
        """
        run = cls(path)
        # A run that failed before its first step (bad data, say) has nothing to lose: its name may be used again.
        if run.metrics_file.exists() or any(run.checkpoints.glob("step_*")):
            raise UserError(f"Run folder {str(path)!r} already holds a run: resume it or choose another name.")
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(run.path / "config.yaml", dump_config(config))
            write_atomically(run.path / "command.txt", " ".join(sys.argv) + "\n")
            write_atomically(run.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"Run folder {str(path)!r} could not be written: {error.strerror}.") from error
        return run

    def set_status(self, state: str, **details: Any) -> None:
        """`state` is one of running, finished, stopped, failed; the heartbeat is the time of writing (epoch seconds)."""
        record = {"state": state, "pid": os.getpid(), "heartbeat": time.time(), **details}
        write_atomically(self.path / "status.json", json.dumps(record, indent=2) + "\n")

    def append_metrics(self, record: dict[str, Any]) -> None:
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def cut_metrics(self, last_step: int) -> None:
        """Drop metric lines beyond a step, and a torn last line, before a resumed run writes them again."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # torn by an interruption; everything behind it is newer than the checkpoint
            if record["step"] <= last_step:
                kept.append(line + "\n")
        write_atomically(self.metrics_file, "".join(kept))


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine, for the run folder and for result files."""
    versions = {}
    for package in ("torch", "transformers", "safetensors", "dflash-workbench"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": _git_commit(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
    }


def _git_commit() -> str | None:
    """Commit of the source tree, None when the package was installed from a wheel or git is absent."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
