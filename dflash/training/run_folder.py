"""A run is a folder; trainer and workbench share nothing else.

    config.yaml  command.txt  environment.json  status.json  metrics.jsonl  log.txt  validation_ids.json
    checkpoints/step_0001000/
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dflash.config import TrainConfig, dump_config
from dflash.errors import UserError
from dflash.files import locked, naming, write_atomically

_FAILURE_FILE = ".failure"
_HELD_OUT_FILE = "validation_ids.json"


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"

    def taken(self) -> str | None:
        """The sentence that refuses a new run here, None where there is room for one.

        A run that failed before its first step (bad data, say) has nothing to lose: its name may be used again.
        """
        if self.metrics_file.exists() or any(self.checkpoints.glob("step_*")):
            return f"Run folder {str(self.path)!r} already holds a run: resume it or choose another name."
        return None

    @classmethod
    def create(cls, path: Path | str, config: TrainConfig) -> "RunFolder":
        """Start a new run folder; hold its lock (`locked`) where others might use it.

        Raises:
            UserError: the folder already holds a run that got somewhere, or cannot be written.
        """
        run = cls(path)
        if taken := run.taken():
            raise UserError(taken)
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            # Of a run that failed before its first step: this one may have other data.
            (run.path / _HELD_OUT_FILE).unlink(missing_ok=True)
            run.record_config(config)
            write_atomically(run.path / "command.txt", _command() + "\n")
            about = {**describe_environment(), "started": time.time()}  # a copy keeps it
            write_atomically(run.path / "environment.json", json.dumps(about, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"Run folder {str(path)!r} could not be written: {error.strerror}.") from error
        return run

    @classmethod
    def resume(cls, path: Path | str, config: TrainConfig) -> "RunFolder":
        """Open a run to go on with it; settings that differ from its own are recorded, the old ones kept beside."""
        run = cls(path)
        run.check_is_run()
        current = run.path / "config.yaml"
        if (old := current.read_text(encoding="utf-8")) != dump_config(config):
            sitting = len(list(run.path.glob("config.before-*.yaml"))) + 1
            write_atomically(run.path / f"config.before-{sitting}.yaml", old)
            run.record_config(config)
        with open(run.path / "command.txt", "a", encoding="utf-8") as file:
            file.write(_command() + "\n")
        return run

    def check_is_run(self) -> None:
        """
        Raises:
            UserError: there is no run in this folder.
        """
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} is no run folder (it holds no config.yaml).")

    def record_config(self, config: TrainConfig) -> None:
        """The settings in force, as they have been resolved so far."""
        write_atomically(self.path / "config.yaml", dump_config(config))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process, before anything is written; the lock goes with the process, however it ends.

        Raises:
            UserError: another process is training in this folder, or the folder cannot be made.
        """
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError as error:
                raise UserError(
                    f"Run folder {str(self.path)!r} is being trained by another process: stop that one first."
                ) from error
            except OSError as error:
                raise UserError(f"Run folder {str(self.path)!r} could not be written: {error.strerror}.") from error
            yield

    def set_status(self, state: str, **details: Any) -> None:
        """`state` is running, finished, stopped or failed; the heartbeat is the time of writing (epoch seconds)."""
        record = {"state": state, "pid": os.getpid(), "heartbeat": time.time(), **details}
        write_atomically(self.path / "status.json", json.dumps(record, indent=2) + "\n")

    def record_failure(self, rank: int, error: BaseException) -> str:
        """The reason of the rank that failed first; the others only tell that somebody is gone."""
        path = self.path / _FAILURE_FILE
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{type(error).__name__} on rank {rank}: {error}")
        except FileExistsError:
            pass
        return path.read_text(encoding="utf-8")

    def failure(self) -> str:
        """What `record_failure` was told; empty where nothing failed, or nobody could say so."""
        path = self.path / _FAILURE_FILE
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def forget_failure(self) -> None:
        (self.path / _FAILURE_FILE).unlink(missing_ok=True)

    def append_metrics(self, record: dict[str, Any]) -> None:
        with naming(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def cut_metrics(self, last_batch: int, again: Collection[str] = ()) -> None:
        """Drop metric lines beyond a batch, and torn ones, before a resumed run writes them again.

        `again`: kinds of records that it will write once more for that batch itself.
        """
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn by an interruption
            if record["batch"] < last_batch + (record.get("kind") not in again):
                kept.append(line + "\n")
        write_atomically(self.metrics_file, "".join(kept))

    def held_out_ids(self, choose: Callable[[], list[str]]) -> list[str]:
        """Ids of the validation conversations: chosen once per run, so that data that grows later stays out of them."""
        path = self.path / _HELD_OUT_FILE
        if not path.is_file():
            write_atomically(path, json.dumps(choose()))
        return json.loads(path.read_text(encoding="utf-8"))


def _command() -> str:
    """What started this process, to paste into a shell: `sys.argv` lacks Python and its `-m`."""
    return shlex.join(sys.orig_argv)


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
