"""Checkpoints: complete or absent, rotated without ever losing the best one.

    checkpoints/step_0001000/
        draft/         the draft in public folder form (bf16)
        state/         fp32 weights and optimizer state (torch.distributed.checkpoint)
        trainer.json   step, random state, best validation loss

A checkpoint is written under a temporary name and renamed when it is complete; older ones go only after that.
"""

import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from dflash.errors import UserError
from dflash.files import write_atomically
from dflash.model.draft import DFlashDraft

_TRAINER_FILE = "trainer.json"
_BEST_FILE = "best.json"


@dataclass
class TrainerState:
    """What a run needs to go on exactly, besides weights and optimizer."""

    step: int = 0  # optimizer steps done; drives schedule, validation and saving
    batches: int = 0  # batches consumed, skipped ones included; drives the sampler
    optimizer: str = ""  # its name, since the states of different optimizers do not fit one another
    device: str = ""  # type of the device the random state belongs to
    best_loss: float | None = None  # lowest validation loss so far
    rng: list[int] | None = None  # state of the anchor generator, as bytes


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        for torn in folder.glob(".step_*"):
            shutil.rmtree(torn)  # an interrupted save; never complete, so nothing is lost

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self._folder.glob("step_*") if (p / _TRAINER_FILE).is_file())

    def latest(self) -> Path | None:
        return self.all()[-1] if self.all() else None

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, if one was marked."""
        marker = self._folder / _BEST_FILE
        return self._folder / json.loads(marker.read_text())["name"] if marker.is_file() else None

    def save(self, draft: DFlashDraft, optimizers: list[Optimizer], state: TrainerState, is_best: bool) -> Path:
        """Write one checkpoint, mark it when it is the best, then remove what rotation allows.

        Raises:
            UserError: the disk is full or not writable; older checkpoints are untouched.
        """
        name = f"step_{state.step:07d}"
        final, staging = self._folder / name, self._folder / f".{name}"
        if final.exists():
            return final  # the same step holds the same state: nothing to write again
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            draft.save_pretrained(staging / "draft")
            model_state, optimizer_state = get_state_dict(draft, optimizers)
            dcp.save(
                {"model": model_state, "optimizer": optimizer_state}, checkpoint_id=staging / "state", no_dist=True
            )
            (staging / _TRAINER_FILE).write_text(json.dumps(asdict(state)))
            _sync_tree(staging)
            os.replace(staging, final)
            if is_best:
                write_atomically(self._folder / _BEST_FILE, json.dumps({"name": name, "loss": state.best_loss}))
        except (OSError, SafetensorError, CheckpointException) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise UserError(
                f"Checkpoint {name} could not be written to {self._folder} ({_last_line(error)}); "
                "the older checkpoints are intact. Free some space and resume."
            ) from error
        self._rotate()
        return final

    def load(
        self, path: Path, draft: DFlashDraft, optimizers: list[Optimizer], expected: TrainerState
    ) -> TrainerState:
        """Restore weights and optimizer in place; `expected` is a fresh state of the run that goes on.

        Raises:
            UserError: the checkpoint was saved with another optimizer or device, is damaged, or is of another draft.
        """
        try:
            saved = TrainerState(**json.loads((path / _TRAINER_FILE).read_text()))
            for name in ("optimizer", "device"):
                if getattr(saved, name) != getattr(expected, name):
                    raise UserError(
                        f"Checkpoint {str(path)!r} was saved with {name} {getattr(saved, name)!r}, the config says "
                        f"{getattr(expected, name)!r}: resume with the same one, or start a new run with "
                        f"draft.init={path / 'draft'}."
                    )
            model_state, optimizer_state = get_state_dict(draft, optimizers)
            tree = {"model": model_state, "optimizer": optimizer_state}
            dcp.load(tree, checkpoint_id=path / "state", no_dist=True)
            set_state_dict(draft, optimizers, model_state_dict=tree["model"], optim_state_dict=tree["optimizer"])
            return saved
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, CheckpointException) as error:
            raise UserError(
                f"Checkpoint {str(path)!r} could not be loaded ({type(error).__name__}: {_last_line(error)}): if it is "
                "damaged, remove that folder to resume from the one before it."
            ) from error

    def _rotate(self) -> None:
        best = self.best()
        for old in self.all()[: -self._keep]:
            if old == best:
                continue
            try:
                shutil.rmtree(old)
            except OSError as error:
                warnings.warn(f"Old checkpoint {old} could not be removed: {error}", stacklevel=2)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def generator_state(generator: torch.Generator) -> list[int]:
    return generator.get_state().tolist()


def restore_generator(generator: torch.Generator, state: list[int]) -> None:
    generator.set_state(torch.tensor(state, dtype=torch.uint8))


def _sync_tree(folder: Path) -> None:
    """Make every file durable before the rename that declares the checkpoint complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
