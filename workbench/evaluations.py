"""Results of `dflash evaluate` and `benchmark` that the Acceptance page shows: recorded, of runs, and loose ones.

recorded                   comes with the workbench, see workbench/record_evaluation.py
NAME                       <runs>/.evaluations/NAME.json
RUN/NAME                   <runs>/RUN/eval/NAME.json
"""

import json
import re
import threading
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from dflash.evaluation.block_sizes_file import BlockSizes, read_block_sizes
from dflash.evaluation.report_file import Evaluation, read_report

RECORDED = "recorded"
RECORDINGS = Path(__file__).parent / "recordings"
RECORDED_EVALUATION = RECORDINGS / "evaluation.json"
RECORDED_BLOCK_SIZES = RECORDINGS / "block_sizes.json"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}"
_NAME = re.compile(rf"({_PART}/)?{_PART}")
_KEPT = 24  # parsed files


class Evaluations:
    """All results below one runs folder. Safe to share between visitors: it only caches."""

    def __init__(self, runs: Path | str) -> None:
        self.runs = Path(runs).absolute()
        self._cache: dict[tuple[Path, int], Any] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Results of evaluations, the newest first, the recorded one last."""
        found = [(path, path.stem) for path in (self.runs / ".evaluations").glob("*.json")]
        found += [(path, f"{path.parent.parent.name}/{path.stem}") for path in self.runs.glob("*/eval/*.json")]
        dated = sorted(((_age(path), name) for path, name in found if _NAME.fullmatch(name)), reverse=True)
        return [name for _, name in dated if name != RECORDED] + [RECORDED] * RECORDED_EVALUATION.is_file()

    def path(self, name: str) -> Path:
        """Where a result is, or will be.

        Raises:
            UserError: the name is no plain name or leads out of the runs folder.
        """
        if name == RECORDED:
            return RECORDED_EVALUATION
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"Result {str(name)[:120]!r} is no plain name: choose one of the list.")
        run, _, rest = name.rpartition("/")
        path = self.runs / run / "eval" / f"{rest}.json" if run else self.runs / ".evaluations" / f"{rest}.json"
        if not path.resolve().is_relative_to(self.runs.resolve()):
            raise UserError(f"Result {name!r} lies outside of {self.runs}: copy it there.")
        return path

    def load(self, name: str) -> Evaluation:
        """A result, read again when its file has changed.

        Raises:
            UserError: as `path`, or there is no such result (any more), or it is damaged.
        """
        return self._cached(self.path(name), name, read_report)

    def recorded(self, name: str) -> dict[str, str] | None:
        """Machine, date and command of a result that was recorded elsewhere; None for one made here."""
        return _record_of(self.path(name)) if name == RECORDED else None

    def block_sizes(self) -> tuple[BlockSizes, dict[str, str] | None] | None:
        """The newest measurement of block sizes made here; else the recorded one with where it was made; else None.

        Raises:
            UserError: the file is damaged.
        """
        own = sorted((self.runs / ".evaluations" / "block-sizes").glob("*.json"), key=_age)
        if own:
            return self._cached(own[-1], own[-1].stem, read_block_sizes), None
        if not RECORDED_BLOCK_SIZES.is_file():
            return None
        measured = self._cached(RECORDED_BLOCK_SIZES, RECORDED, read_block_sizes)
        return measured, _record_of(RECORDED_BLOCK_SIZES)

    def _cached(self, path: Path, name: str, read) -> Any:
        try:
            key = (path, path.stat().st_mtime_ns)
        except OSError as error:
            raise UserError(f"There is no result {name!r} (any more): choose another one.") from error
        with self._lock:
            if key not in self._cache:
                while len(self._cache) >= _KEPT:
                    self._cache.pop(next(iter(self._cache)))
                self._cache[key] = read(path)
            return self._cache[key]


def _record_of(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))["recorded"]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
