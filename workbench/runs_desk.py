"""Everything the Runs page can be asked, by its own scripts and through the API. It keeps nothing of a visitor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from workbench import run_rows
from workbench.curves import Span
from workbench.metric_lines import Cursor, is_number
from workbench.run_export import as_csv, as_page
from workbench.run_log import log_tail
from workbench.run_notes import read_notes, write_notes
from workbench.run_reader import RunsRoot
from workbench.run_series import RunSeries, SeriesStore
from workbench.run_views import (
    MOST_RUNS,
    balance_view,
    checkpoints_view,
    compare_view,
    curves_view,
    row_view,
    stamp,
    table_view,
    text_of,
)
from workbench.train_jobs import TrainJobs

ACTIONS = ("stop", "abort", "resume", "queue")
LOGS = ("log", "output")  # log.txt of the run, and what its process printed
_MOST_POINTS = 5_000


class RunsDesk:
    """Answers about the runs of one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = RunsRoot(root)
        self._trainings = TrainJobs(root)
        self.jobs = self._trainings.jobs
        self._series = SeriesStore(self.root)

    def table(self) -> dict[str, Any]:
        """All runs, queued ones first, then the newest."""
        return {"folder": str(self.root.root), "rows": table_view(run_rows.rows(self.root, self.jobs))}

    def curves(
        self, names: Sequence[str], span: Sequence[float] | None = None, points: int | None = None, seen: str = ""
    ) -> dict[str, Any] | None:
        """Curves of up to six runs between two steps; None where `seen` is the stamp of this very answer.

        Raises:
            UserError: too many or unknown runs, or a span that is none.
        """
        names, span = self._known(names), _span(span)
        if points is not None and not 2 <= points <= _MOST_POINTS:
            raise UserError(f"{points} points of a curve are not possible: ask for 2 to {_MOST_POINTS:,}.")
        found = [self._get(name) for name in names]
        places = [[name, cursor.offset, cursor.restarts] for name, (_, cursor) in zip(names, found, strict=True)]
        now = stamp([places, span])
        if now == seen:
            return None
        runs = [series for series, _ in found]
        view = curves_view(runs, span, points) if points else curves_view(runs, span)
        balance = balance_view(runs[0], self.root.root / names[0] / "config.yaml") if runs else None
        return {"stamp": now, **view, "balance": balance}

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """All about the first run besides its curves, and the settings in which the others differ from it.

        Raises:
            UserError: as `curves`.
        """
        names = self._known(names)
        if not names:
            raise UserError("No run is chosen: choose one in the table.")
        path = self.root.root / names[0]
        notes = read_notes(path)
        return {
            "row": row_view(run_rows.row(self.root, self.jobs, names[0])),
            "command": text_of(path / "command.txt").strip(),
            "config": text_of(path / "config.yaml"),
            "environment": text_of(path / "environment.json"),
            "checkpoints": checkpoints_view(path),
            "compare": compare_view(self.root, names),
            "notes": {"text": notes.text, "tags": " ".join(notes.tags), "version": notes.version},
        }

    def log(self, name: str, pattern: str = "", source: str = "log", lines: int = 300) -> dict[str, Any]:
        """The last lines that hold `pattern`.

        Raises:
            UserError: there is no such run, or its log cannot be read.
        """
        if source not in LOGS:
            raise UserError(f"There is no log {source!r}: choose one of {', '.join(LOGS)}.")
        if not 1 <= lines <= 5_000:
            raise UserError(f"{lines} lines of a log are not possible: ask for 1 to 5,000.")
        found = run_rows.row(self.root, self.jobs, name)
        path = self.root.root / name / "log.txt"
        if source == "output":
            path = found.job.log_file if found.job else path.with_name("output.log")
        tail = log_tail(path, pattern, lines)
        return {"lines": list(tail.lines), "matching": tail.matching, "searched": tail.searched, "size": tail.size}

    def save_notes(self, name: str, text: str, tags: str, version: str | None = None) -> dict[str, Any]:
        """Replace notes and tags.

        Raises:
            UserError: there is no such run, they are too long, or were changed elsewhere.
        """
        notes = write_notes(self.root.path(name), text, tags, version)
        return {"text": notes.text, "tags": " ".join(notes.tags), "version": notes.version}

    def act(self, name: str, action: str) -> dict[str, Any]:
        """Stop, abort or resume a run, now or in the queue; returns its row of the table afterwards, None where an
        aborted one left none.

        Raises:
            UserError: there is no such run or action, or the run's state does not allow it.
        """
        if action == "stop":
            if run_rows.row(self.root, self.jobs, name).job is None:
                raise UserError(f"Run {name!r} was not started from a workbench: press Ctrl-C where it was started.")
            self._trainings.stop(name)
        elif action == "abort":
            self.jobs.abort(name)
            if self.jobs.find(name) is None and name not in self.root.names():
                return {"row": None}
        elif action in ("resume", "queue"):
            self._trainings.resume(name, queued=action == "queue")
        else:
            raise UserError(f"There is no action {action!r}: choose one of {', '.join(ACTIONS)}.")
        return {"row": row_view(run_rows.row(self.root, self.jobs, name))}

    def csv(self, names: Sequence[str]) -> str:
        """Every record of some runs as one table.

        Raises:
            UserError: as `curves`.
        """
        return as_csv({name: self.root.metrics(name)[0] for name in self._known(names)})

    def page(self, names: Sequence[str]) -> str:
        """One HTML file with figures, tables and settings of some runs, which needs no other file and no network.

        Raises:
            UserError: as `curves`.
        """
        names = self._known(names)
        rows = [run_rows.row(self.root, self.jobs, name).summary for name in names]
        return as_page([self._get(name)[0] for name in names], rows, compare_view(self.root, names))

    def _known(self, names: Sequence[str]) -> list[str]:
        """Runs or queued jobs, each once.

        Raises:
            UserError: one of them is neither, or there are too many for one picture.
        """
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise UserError("Runs are asked for by a list of names: choose them in the table.")
        names = list(dict.fromkeys(names))
        if len(names) > MOST_RUNS:
            raise UserError(f"{len(names)} runs over one another cannot be told apart: choose up to {MOST_RUNS}.")
        for name in names:
            run_rows.row(self.root, self.jobs, name)
        return names

    def _get(self, name: str) -> tuple[RunSeries, Cursor]:
        try:
            return self._series.get(name)
        except UserError:
            run_rows.row(self.root, self.jobs, name)  # a queued run has no folder yet; an unknown one is refused
            return RunSeries(name), Cursor()


def _span(span: Sequence[float] | None) -> Span | None:
    if not span:
        return None
    if len(span) != 2 or not all(map(is_number, span)) or not span[0] < span[1]:
        raise UserError(f"{span} is no range of steps: give the first and the last one.")
    return float(span[0]), float(span[1])
