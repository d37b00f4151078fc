"""The comparison on the Decode page: several drafts and settings, and other ways on the same target, on one prompt."""

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from dflash.decoding.ways import MAX_ROUNDS, Way, other_ways
from dflash.errors import UserError
from workbench.bench import Bench
from workbench.components import asked, packed, panel
from workbench.machine import in_words
from workbench.race_settings import RaceSettings, parse_history
from workbench.sentences import sentence_of
from workbench.turns import place_in_words
from workbench.ways_view import added, compare_ways, draft_way, entry_of, way_of
from workbench.worker import Waiting, Worker

_PRIVATE = {"api_visibility": "private"}
_INVITATION = "Add settings from the controls, say what else to measure, and press Compare."
_READ = {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}


def build(bench: Bench, controls: dict[str, gr.components.Component], history: gr.HTML, talk: gr.Checkbox) -> None:
    """Lay out the section and wire it to the page's controls."""
    names = list(controls)
    with gr.Column(elem_classes="df-ways-box"):
        ways = panel("ways", _content([], _INVITATION), elem_id="ways")
        with gr.Row(elem_classes="df-ways-controls df-side"):
            add = gr.Button("Add these settings", elem_id="add_way", min_width=150)
            lookup = gr.Checkbox(True, label="Prompt lookup", elem_id="lookup", container=False, min_width=130)
            lookup_tokens = gr.Number(
                10,
                label="Tokens it proposes",
                precision=0,
                minimum=1,
                maximum=64,
                elem_id="lookup_tokens",
                min_width=120,
            )
            assistant = gr.Textbox(
                label="Small draft (folder or id, same tokenizer)", elem_id="assistant", min_width=220, max_lines=1
            )
            rounds = gr.Number(
                1, label="Rounds", precision=0, minimum=1, maximum=MAX_ROUNDS, elem_id="rounds", min_width=80
            )
            start = gr.Button("Compare", variant="primary", elem_id="compare", min_width=110)
            stop = gr.Button("Stop", elem_id="stop_compare", min_width=70)
    own = list(controls.values())

    def add_way(view: str, *values) -> str:
        return asked(lambda: _view(added(_entries(view), draft_way(_settings(names, values, ""))), ""))

    def remove_way(view: str, event: gr.EventData) -> str:
        entries = asked(lambda: _entries(view))
        return _view([way for place, way in enumerate(entries) if place != event.place], "")

    def compare(view, lookup, lookup_tokens, assistant, rounds, history, talk, *values) -> Iterator[str]:
        entries: list[Way] = []
        try:
            entries = _entries(view)
            settings = _settings(names, values, history if talk else "")
            chosen = entries or [draft_way(settings)]
            others = other_ways(
                settings.temperature, settings.seed, int(lookup_tokens or 0) if lookup else 0, assistant or ""
            )
            yield from _stream(bench, settings, entries, [*chosen, *others], int(rounds or 1))
        except Exception as error:  # whatever it is, a comparison that runs for ever would not say so
            yield _view(entries, sentence_of(error), phase="error")

    add.click(add_way, [ways, *own], ways, **_READ)
    ways.remove(remove_way, ways, ways, **_READ)
    clicked = start.click(
        compare, [ways, lookup, lookup_tokens, assistant, rounds, history, talk, *own], ways, **_READ
    )
    stop.click(None, cancels=[clicked], **_PRIVATE).then(
        None, js="() => window.dispatchEvent(new CustomEvent('dflash:ways-stopped'))", **_PRIVATE
    )


def _stream(bench: Bench, settings: RaceSettings, entries: list[Way], ways: list[Way], rounds: int) -> Iterator[Any]:
    """Pictures of a comparison under way, then the finished one."""
    yield _view(entries, "Starting …", phase="running")
    worker = Worker(lambda report: compare_ways(bench, settings, ways, rounds, report=report))
    for report in worker:
        if report is None:
            yield gr.skip()
        elif isinstance(report, Waiting):
            yield _view(entries, place_in_words(report), phase="running")
        else:
            yield _view(entries, report["message"], report["rows"], phase="running")
    about = {
        "prompt": settings.prompt,
        "history": list(settings.history),
        "max_new_tokens": settings.max_new_tokens,
        "target": bench.target_name,
        "machine": bench.machine(),
    }
    words = f"{len(worker.result)} ways, {rounds} round{'s' if rounds > 1 else ''} each · {in_words(about['machine'])}"
    yield _view(entries, words, worker.result, phase="done", about=about)


def _view(entries: list[Way], message: str, rows: list[dict] | None = None, **more) -> str:
    """What the panel draws, as it travels."""
    return packed(_content(entries, message, rows, **more))


def _content(
    entries: list[Way], message: str, rows: list[dict] | None = None, *, phase: str = "empty", about: dict | None = None
) -> dict[str, Any]:
    return {
        "entries": [entry_of(way) for way in entries],
        "rows": rows or [],
        "message": message,
        "phase": phase,
        "about": about or {},
    }


def _entries(view: str | None) -> list[Way]:
    """The ways in the panel's list, which comes back from the browser and is judged like any input.

    Raises:
        UserError: it is no list of ways.
    """
    try:
        entries = json.loads(view or "{}").get("entries", [])
        return [way_of({name: value for name, value in entry.items() if name != "label"}) for entry in entries]
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise UserError("The list of settings to compare is damaged: load the page anew.") from error


def _settings(names: list[str], values: tuple, history: str) -> RaceSettings:
    given = dict(zip(names, values, strict=True))
    for name in ("max_new_tokens", "block_size", "seed"):
        given[name] = int(given[name] or 0)
    return RaceSettings(**given, history=parse_history(history))
