"""The Runs page: which runs there are, how they go, what differs between them.

Its components ask the server themselves (`server_functions`): every answer depends on the question alone, so that
nothing is kept for a visitor, tabs cannot mix, and what is in view is in the address.
"""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from dflash.errors import UserError
from workbench.bench import Bench
from workbench.components import packed, panel
from workbench.endpoints import register
from workbench.run_views import stamp
from workbench.runs_desk import RunsDesk


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks."""
    desk = RunsDesk(bench.runs)
    with gr.Column(elem_classes="df-runs-page"):
        panel("runs_table", scripts=("live",), elem_id="runs", server_functions=[_read_runs(desk)])
        panel("curves", scripts=("live", "chart"), elem_id="curves", server_functions=[_read_curves(desk)])
        panel("run_details", scripts=("live",), elem_id="run", server_functions=_details(desk))
    _api(desk)


# What each question of the page's scripts is made of.
_NOTHING = type(None)
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "read_runs": {"seen": str},
    "read_curves": {"runs": list, "span": (list, _NOTHING), "seen": str},
    "read_run": {"runs": list, "seen": str},
    "read_log": {"run": str, "pattern": str, "source": str, "seen": str},
    "save_notes": {"run": str, "text": str, "tags": str, "version": str},
    "act": {"run": str, "action": str},
    "export_csv": {"runs": list},
    "export_page": {"runs": list},
}


def answered(question: Callable[[dict], Any]) -> Callable[[Any], str]:
    """A server function: its answer as JSON text, a user's mistake as a sentence in its place."""
    fields = _FIELDS[question.__name__]

    @functools.wraps(question)
    def answer(request: Any) -> str:
        try:
            # The page of an older version may ask this, or somebody who tries things.
            if not isinstance(request, dict) or not all(isinstance(request.get(f), kind) for f, kind in fields.items()):
                raise UserError("The page sent something that is no question: reload it.")
            return packed({"value": question(request)})
        except UserError as error:
            return packed({"error": str(error)})

    return answer


def _unless_seen(value: dict[str, Any], request: dict) -> dict[str, Any] | None:
    """None where the page has this very answer already."""
    now = stamp(value)
    return None if now == request["seen"] else {**value, "stamp": now}


def _read_runs(desk: RunsDesk):
    @answered
    def read_runs(request: dict) -> dict[str, Any] | None:
        return _unless_seen(desk.table(), request)

    return read_runs


def _read_curves(desk: RunsDesk):
    @answered
    def read_curves(request: dict) -> dict[str, Any] | None:
        return desk.curves(request["runs"], request["span"], seen=request["seen"])

    return read_curves


def _details(desk: RunsDesk) -> list[Callable]:
    @answered
    def read_run(request: dict) -> dict[str, Any] | None:
        return _unless_seen(desk.run(request["runs"]), request)

    @answered
    def read_log(request: dict) -> dict[str, Any] | None:
        return _unless_seen(desk.log(request["run"], request["pattern"], request["source"]), request)

    @answered
    def save_notes(request: dict) -> dict[str, Any]:
        return desk.save_notes(request["run"], request["text"], request["tags"], request["version"])

    @answered
    def act(request: dict) -> dict[str, Any]:
        return desk.act(request["run"], request["action"])

    @answered
    def export_csv(request: dict) -> str:
        return desk.csv(request["runs"])

    @answered
    def export_page(request: dict) -> str:
        return desk.page(request["runs"])

    return [read_run, read_log, save_notes, act, export_csv, export_page]


def _told(action: Callable) -> Callable:
    """The same with a user's mistake as Gradio shows it."""

    @functools.wraps(action)
    def tell(*values):
        try:
            return action(*values)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return tell


def _api(desk: RunsDesk) -> None:
    # Stop, resume and abort are the Train page's `train_stop`, `train_resume` and `queue_abort`.
    def runs() -> dict:
        """All runs with state, progress, time left, losses, tau, speed and tags; queued ones first, then the newest."""
        return desk.table()

    def run(name: str) -> dict:
        """One run: its row of the table, command, settings, versions, checkpoints and notes."""
        return desk.run([name])

    def run_curves(names: list[str], first_step: float = 0, last_step: float = 0, points: int = 360) -> dict:
        """Curves of up to six runs, thinned to `points` (mean, least, largest); steps 0 to 0 take the whole run."""
        span = None if first_step == last_step == 0 else [first_step, last_step]
        return desk.curves(names, span, points)

    def run_log(name: str, pattern: str = "", source: str = "log", lines: int = 300) -> dict:
        """The last lines of a run's log.txt (source "output": what its process printed) that hold `pattern`."""
        return desk.log(name, pattern, source, lines)

    def run_compare(names: list[str]) -> dict:
        """The settings in which runs differ."""
        return desk.run(names)["compare"]

    def run_notes(name: str, text: str, tags: str = "") -> dict:
        """Replace a run's notes and its tags, which are separated by spaces."""
        return desk.save_notes(name, text, tags)

    def run_csv(names: list[str]) -> str:
        """Every metric record of some runs as CSV text."""
        return desk.csv(names)

    def run_html(names: list[str]) -> str:
        """Figures, tables and differing settings of some runs as one HTML page that needs no other file."""
        return desk.page(names)

    for endpoint in (runs, run, run_curves, run_log, run_compare, run_notes, run_csv, run_html):
        register(_told(endpoint))
