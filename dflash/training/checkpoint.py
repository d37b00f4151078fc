"""Checkpoints: complete or absent, rotated without ever losing the best one.

    checkpoints/step_0001000/
        draft/          the draft in public folder form (bf16); the averaged weights where the run keeps an average
        state/          weights, optimizer and random states of all ranks (torch.distributed.checkpoint, safetensors)
        trainer.json    step, position in the data, best validation loss, whether this is the checkpoint that has it
        manifest.json   size and checksum of every file above
        measured.json   what a run that was stopped in the middle of a validation found out when it went on
    checkpoints/best.json   name and loss of the best one, for readers; the checkpoints themselves decide

All ranks write under a temporary name; when everything is durable, rank 0 renames it. Older ones go only after that,
and under a temporary name again: whatever dies in between, a folder called step_* is complete.
Ranks on several machines need a file system that they share.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from dflash.errors import UserError
from dflash.files import write_atomically
from dflash.manifest import Entries, describe, find_damage, read_manifest, write_manifest
from dflash.training.export import DraftExport
from dflash.training.training_state import TrainingState, write_tensors
from dflash.training.world import World

_LOG = logging.getLogger(__name__)
_MANIFEST_FILE = "manifest.json"
_TRAINER_FILE = "trainer.json"
_BEST_FILE = "best.json"
_MEASURED_FILE = "measured.json"  # in a checkpoint that was measured only when its run went on
_IS_BEST = "is_best"  # in trainer.json
# What reading or writing may raise that is the disk's or the files' fault.
_TROUBLE = (OSError, SafetensorError, CheckpointException)


@dataclass
class TrainerState:
    """What a run needs to go on exactly, besides its tensors."""

    step: int = 0  # optimizer steps done; drives schedule, validation and saving
    batches: int = 0  # batches consumed, skipped ones included; where metrics.jsonl stands
    rows: int = 0  # rows consumed; drives the sampler and the anchors
    optimizer: str = ""  # its name, since the states of different optimizers do not fit one another
    training_rows: int = 0  # rows there are; other data is another order
    training_digest: str = ""  # of their ids and tokens; empty in checkpoints of older versions
    world_size: int = 1  # ranks
    best_loss: float | None = None  # lowest validation loss so far
    pending: list[str] = field(default_factory=list)  # measurements of this step that a request to stop cut short

    def is_last(self, max_steps: int | None) -> bool:
        """Whether a run of so many steps has nothing left to do."""
        return max_steps is not None and self.step >= max_steps and not self.pending


@dataclass(frozen=True)
class Contents:
    """Everything that goes into one checkpoint; with the tensors in host memory it may be written by a thread."""

    state: TrainerState
    tensors: dict[str, torch.Tensor]
    draft: DraftExport
    is_best: bool


class CheckpointStore:
    """The checkpoints of one run. Every rank calls `save` and `load`."""

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        self._folder = folder
        self._keep = keep
        self._world = world
        if world.is_main and folder.is_dir():
            self._sweep()
            self._mark_best()

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(filter(_is_complete, self._folder.glob("step_*")))

    def latest(self) -> Path | None:
        return self.all()[-1] if self.all() else None

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, if one was saved for it."""
        marked = self._marked().get("name")
        losses = {path: _best_loss_in(path, path.name == marked) for path in reversed(self.all())}
        return min((path for path, loss in losses.items() if loss is not None), key=losses.get, default=None)

    def save(self, contents: Contents) -> Path:
        """Write one checkpoint, mark it when it is the best, then remove what rotation allows.

        Raises:
            UserError: the disk is full or not writable; older checkpoints are untouched.
        """
        name = f"step_{contents.state.step:07d}"
        final, staging = self._folder / name, self._folder / f".{name}"
        world, group = self._world, self._world.saving
        if world.on_main(lambda: self._is_there(final, contents), group):
            return final  # the same step holds the same weights: nothing to write again
        try:
            world.on_main(lambda: self._explaining(name, lambda: self._begin(staging, contents)), group)
            files = write_tensors(staging / "state", contents.tensors, group, world.rank)
            described = world.gather(_attempt(lambda: describe(staging, files)), group)
            finish = lambda: self._finish(staging, final, contents, described)  # noqa: E731
            world.on_main(lambda: self._explaining(name, finish), group)
        except _TROUBLE as error:
            raise self._unwritten(name, error) from error
        finally:
            if world.is_main:
                shutil.rmtree(staging, ignore_errors=True)  # renamed when all went well
        return final

    def newest(self) -> tuple[Path, TrainerState] | None:
        """The checkpoint to go on from, looked through, and its state. Every rank calls it.

        Raises:
            UserError: it is damaged, or of an older version.
        """
        path = self._world.on_main(self.latest)
        return None if path is None else (path, self.read_state(path))

    def read_state(self, path: Path) -> TrainerState:
        """The state of a checkpoint whose every file was found to be as it was written.

        Raises:
            UserError: it is damaged, or of an older version.
        """
        found = self._world.gather(self._find_damage(path))
        damage = next((text for text in found if text), None)
        if damage is None:
            try:
                record = _read_trainer(path)
                record.pop(_IS_BEST, None)  # of that checkpoint, not of what follows it
                return TrainerState(**record)
            except (OSError, ValueError, TypeError) as error:
                damage = f"{_TRAINER_FILE}: {_last_line(error)}"
        raise UserError(
            f"Checkpoint {str(path)!r} is damaged ({damage}): remove that folder to resume from the one before it."
        )

    def load(self, path: Path, tensors: TrainingState, saved: TrainerState, optimizer: str) -> bool:
        """Restore tensors in place from a checkpoint that `read_state` found sound; False when it has no average.

        Raises:
            UserError: it was saved with another optimizer, or is of another draft.
        """
        if saved.optimizer != optimizer:
            raise UserError(
                f"Checkpoint {str(path)!r} was saved with optimizer {saved.optimizer!r}, the config says "
                f"{optimizer!r}: resume with the same one, or start a new run with draft.init={path / 'draft'}."
            )
        try:
            return tensors.load(path / "state", self._world.control, saved.world_size == self._world.size)
        except (*_TROUBLE, ValueError, KeyError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"Checkpoint {str(path)!r} does not fit this run ({_last_line(error)}): resume with the config it was "
                f"made with, or start a new run with draft.init={path / 'draft'}."
            ) from error

    def _is_there(self, final: Path, contents: Contents) -> bool:
        """Whether this step was saved before; that it is the best may have turned out only afterwards."""
        if not _is_complete(final):
            return False
        stored = _read_trainer(final)
        if stored.get("pending") and not contents.state.pending:
            is_best = contents.is_best or stored[_IS_BEST]
            measured = {"pending": [], "best_loss": contents.state.best_loss, _IS_BEST: is_best}
            write_atomically(final / _MEASURED_FILE, json.dumps(measured))
            self._mark_best()
        return True

    def _begin(self, staging: Path, contents: Contents) -> None:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "state").mkdir(parents=True)
        contents.draft.write(staging / "draft")

    def _finish(self, staging: Path, final: Path, contents: Contents, described: list[Entries | OSError]) -> None:
        record = {**asdict(contents.state), _IS_BEST: contents.is_best}
        (staging / _TRAINER_FILE).write_text(json.dumps(record), encoding="utf-8")
        entries = describe(staging, [staging / _TRAINER_FILE, *(staging / "draft").iterdir()])
        for rank, part in enumerate(described):
            if isinstance(part, OSError):
                raise part
            for name, entry in part.items():
                path = staging / name
                if not path.is_file() or path.stat().st_size != entry["size"]:
                    raise OSError(f"{name} of rank {rank} is not to be seen here: all ranks have to share the disk")
            entries |= part
        write_manifest(staging / _MANIFEST_FILE, entries)
        for folder in (staging / "state", staging / "draft", staging):
            _sync_folder(folder)
        if final.exists():
            shutil.rmtree(final)  # not complete, as `save` has found
        os.replace(staging, final)
        _sync_folder(self._folder)
        self._mark_best()
        self._rotate()

    def _sweep(self) -> None:
        """Remove what an interrupted save or removal left; it was never complete or no longer is."""
        for torn in (*self._folder.glob(".step_*"), *self._folder.glob("step_*")):
            if not _is_complete(torn) or torn.name.startswith("."):
                _remove(torn)

    def _mark_best(self) -> None:
        """Bring the readers' file in line with the checkpoints, of which some may have come or gone without it."""
        best, marker = self.best(), self._folder / _BEST_FILE
        if best is None:
            marker.unlink(missing_ok=True)
        elif self._marked().get("name") != best.name:
            write_atomically(marker, json.dumps({"name": best.name, "loss": _best_loss_in(best, True)}))

    def _marked(self) -> dict:
        try:
            marker = json.loads((self._folder / _BEST_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return marker if isinstance(marker, dict) else {}

    def _rotate(self) -> None:
        best = self.best()
        for old in self.all()[: -self._keep]:
            if old != best:
                _remove(old)

    def _find_damage(self, path: Path) -> str | None:
        """This rank's share of the files is looked through."""
        try:
            entries = read_manifest(path / _MANIFEST_FILE)
        except FileNotFoundError:
            return f"{_MANIFEST_FILE} is missing, as in checkpoints of an older version"
        except (OSError, ValueError) as error:
            return f"{_MANIFEST_FILE}: {_last_line(error)}"
        mine = sorted(entries)[self._world.rank :: self._world.size]
        try:
            return find_damage(path, {name: entries[name] for name in mine})
        except OSError as error:
            return _last_line(error)

    def _explaining(self, name: str, work: Callable[[], None]) -> None:
        """Trouble on rank 0 becomes a UserError, which every rank is told."""
        try:
            work()
        except _TROUBLE as error:
            raise self._unwritten(name, error) from error

    def _unwritten(self, name: str, error: BaseException) -> UserError:
        return UserError(
            f"Checkpoint {name} could not be written to {self._folder} ({_last_line(error)}); "
            "the older checkpoints are intact. Free some space and resume."
        )


def _is_complete(path: Path) -> bool:
    """The trainer's file is in every checkpoint; a folder without it is torn."""
    return (path / _TRAINER_FILE).is_file()


def _read_trainer(path: Path) -> dict:
    """The trainer's file of a checkpoint, with what was measured after it had been written."""
    record, later = json.loads((path / _TRAINER_FILE).read_text(encoding="utf-8")), path / _MEASURED_FILE
    return record | json.loads(later.read_text(encoding="utf-8")) if later.is_file() else record


def _best_loss_in(path: Path, marked: bool) -> float | None:
    """Validation loss of a checkpoint that was the best when it was saved, else None.

    Checkpoints of older versions do not say what they are: for them best.json counts (`marked`).
    """
    try:
        record = _read_trainer(path)
        return record["best_loss"] if record.get(_IS_BEST, marked) else None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        _LOG.warning("%s of checkpoint %s cannot be read, so it is not the best: %s", _TRAINER_FILE, path, error)
        return None


def _remove(path: Path) -> None:
    """Remove a checkpoint, under another name first: cut short, it is not taken for a complete one."""
    try:
        hidden = path.with_name(f".{path.name.lstrip('.')}")
        os.replace(path, hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        _LOG.warning("Old checkpoint %s could not be removed: %s", path, error)


def _attempt(work: Callable[[], Entries]) -> Entries | OSError:
    """An error as a value, for ranks that must not miss the next agreement."""
    try:
        return work()
    except OSError as error:
        return error


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, not only the contents behind them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
