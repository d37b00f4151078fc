"""Result files: one JSON line per run, appended when the run has been judged, so that an interruption loses one run."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from dflash.evaluation.score import ConversationScore
from dflash.files import naming


@dataclass(frozen=True)
class RunResult:
    """One trained draft and how it did on the conversations held out."""

    value: float  # of the setting that is varied
    seed: int
    commands: tuple[str, ...]  # that made it: capture and train
    config: dict[str, Any]  # resolved
    steps: int
    blocks_per_step: float  # mean over the logged steps: anchors that were really found, times conversations
    train_loss: float  # of the last logged step
    anchors: int  # blocks per held-out conversation, at most
    date: str
    machine: dict[str, Any]
    held_out: dict[int, tuple[ConversationScore, ...]]  # by the block size that was used

    @property
    def key(self) -> tuple[float, int]:
        return self.value, self.seed


def append_result(path: Path, result: RunResult) -> None:
    """Add one run; it is on disk when this returns."""
    record = asdict(result) | {"held_out": {str(k): _columns(scores) for k, scores in result.held_out.items()}}
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_results(path: Path) -> list[RunResult]:
    """All runs of a file, in its order; an absent file has none.

    Raises:
        UserError: a line is damaged.
    """
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            results.append(_parsed(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"Line {number} of {path} holds no result ({error}): remove it to run it again.") from error
    return results


def _parsed(record: dict[str, Any]) -> RunResult:
    held_out = {
        int(size): tuple(
            ConversationScore(one, tuple(count), tuple(correct), tuple(reached))
            for one, count, correct, reached in zip(*(columns[n] for n in _COLUMNS), strict=True)
        )
        for size, columns in record["held_out"].items()
    }
    return RunResult(**record | {"held_out": held_out, "commands": tuple(record["commands"])})


_COLUMNS = ("id", "count", "correct", "reached")


def _columns(scores: tuple[ConversationScore, ...]) -> dict[str, list]:
    """Field by field: a third of the size of a list of objects."""
    return {name: [getattr(score, name) for score in scores] for name in _COLUMNS}
