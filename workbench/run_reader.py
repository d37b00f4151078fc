"""A read-only view of the runs below one folder, for every page that shows them.

The trainer writes run folders (dflash/training/run_folder.py); whatever is half-written, cut, damaged or gone becomes
a sentence in a summary or one `UserError`, never another exception.
"""

import re
import threading
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from workbench.metric_lines import Cursor, Record, read_on
from workbench.run_summary import LatestRecords, RunSummary, read_settings, summarise, started_at

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunsRoot:
    """All runs of one folder, which may not exist yet. Safe to share between threads and visitors: it only caches."""

    def __init__(self, path: Path | str) -> None:
        self.root = Path(path).expanduser().absolute()
        self._latest: dict[str, LatestRecords] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Runs, the newest first. Folders whose name could not be asked for again are left out."""
        found = []
        try:
            entries = list(self.root.iterdir())
        except OSError:
            return []
        for entry in entries:
            if NAME.fullmatch(entry.name) and _is_run(entry):
                found.append((started_at(entry) or 0.0, entry.name))
        return [name for _, name in sorted(found, reverse=True)]

    def path(self, name: str) -> Path:
        """The folder of a run.

        Raises:
            UserError: the name is no plain name, leads out of the runs folder, or there is no such run (any more).
        """
        check_name(name)
        path = self.root / name
        if path.resolve().parent != self.root.resolve():
            raise UserError(
                f"Run {name!r} lies outside of {self.root}: move it there, or start with --runs on its folder."
            )
        if not _is_run(path):
            raise UserError(f"There is no run {name!r} in {self.root} (any more): choose one of the table.")
        return path

    def summary(self, name: str) -> RunSummary:
        """One row of the table; what could not be read is said in its `problem`.

        Raises:
            UserError: as `path`.
        """
        path = self.path(name)
        with self._lock:
            return summarise(path, self._latest.setdefault(name, LatestRecords()))

    def summaries(self) -> list[RunSummary]:
        """All rows, the newest first; a run that is deleted meanwhile is left out."""
        rows = []
        for name in self.names():
            try:
                rows.append(self.summary(name))
            except UserError:
                continue
        with self._lock:
            kept = {row.name for row in rows}
            self._latest = {name: latest for name, latest in self._latest.items() if name in kept}
        return rows

    def metrics(self, name: str, cursor: Cursor | None = None) -> tuple[list[Record], Cursor]:
        """Records behind the cursor, and the cursor behind them; see `read_on` for files that were cut.

        Raises:
            UserError: as `path`, or the file cannot be read. A run without metrics yet has none.
        """
        path = self.path(name) / "metrics.jsonl"
        try:
            return read_on(path, cursor)
        except FileNotFoundError:
            return [], Cursor(restarts=cursor.restarts + 1 if cursor and cursor.offset else 0)
        except OSError as error:
            raise UserError(f"metrics.jsonl of run {name!r} could not be read: {error.strerror}.") from error

    def settings(self, name: str) -> dict[str, Any]:
        """The run's config as a tree of settings, not validated: it may come from another version.

        Raises:
            UserError: as `path`, or the config is missing or damaged.
        """
        path = self.path(name) / "config.yaml"
        try:
            return read_settings(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"config.yaml of run {name!r} could not be read ({why}): look into {path}.") from error


def check_name(name: Any) -> None:
    """
    Raises:
        UserError: it is not the plain name of a folder.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"Run name {str(name)[:120]!r} is no plain name: use letters, digits, '-', '_' and '.'.")


def _is_run(path: Path) -> bool:
    try:
        return (path / "config.yaml").is_file() or (path / "status.json").is_file()
    except OSError:
        return False
