"""What the pages compute takes turns, says its place, and ends when nobody wants it any more."""

import json
import time
from pathlib import Path

import gradio as gr
import pytest
from workbench_server import PATIENCE, save_tiny_draft

from dflash.decoding.ways import Way
from dflash.target import TargetModel
from workbench.app import build_app
from workbench.bench import Bench
from workbench.pages.decode import stream_race
from workbench.pages.decode_ways import _stream
from workbench.race_settings import RaceSettings
from workbench.turns import bench_turns

CONTROLS = {"prompt": "Go on and on.", "max_new_tokens": 440, "temperature": 0.0, "rule": "target", "draft": ""}


@pytest.fixture(scope="module")
def bench(tiny_target, tiny_target_folder, tmp_path_factory) -> Bench:
    draft = save_tiny_draft(tiny_target, tmp_path_factory.mktemp("turns") / "draft")
    bench = Bench(tiny_target_folder, draft, Path("no-runs"))
    bench.engine("")
    return bench


@pytest.fixture
def forwards(monkeypatch) -> list[float]:
    """When the target was run."""
    seen: list[float] = []
    real = TargetModel.forward

    def counted(self, *args, **options):
        seen.append(time.monotonic())
        return real(self, *args, **options)

    monkeypatch.setattr(TargetModel, "forward", counted)
    return seen


def race(bench, tokens: int = 440):
    return stream_race(bench, CONTROLS | {"max_new_tokens": tokens}, "", False)


def phase(outputs) -> str:
    return json.loads(outputs[0])["phase"]


def until(running, *phases: str) -> None:
    while phase(next(running)) not in phases:
        pass


def test_a_second_visitor_waits_in_words_and_decodes_when_the_first_one_leaves(bench, forwards):
    first, second = race(bench), race(bench, 8)
    until(first, "target")
    told = next(second)
    assert phase(told) == "waiting" and "ahead of this one" in json.loads(told[0])["message"]
    first.close()
    count = len(forwards)
    time.sleep(0.3)
    assert len(forwards) == count, "a closed race runs no forward more"
    began = time.monotonic()
    assert [phase(outputs) for outputs in second][-1] == "done"
    assert time.monotonic() - began < 10 * PATIENCE
    assert len(bench_turns) == 0


def test_a_closed_comparison_runs_at_most_the_step_in_flight_and_frees_its_turn(bench, forwards):
    running = _stream(bench, RaceSettings("Go on.", max_new_tokens=400), [], [Way("draft"), Way("plain")], 9)
    while not forwards:
        next(running)
    running.close()
    count = len(forwards)
    ended = time.monotonic() + 10 * PATIENCE
    while len(bench_turns):
        assert time.monotonic() < ended
        time.sleep(0.01)
    # Warming up is not interrupted; behind it the first step ends everything.
    assert len(forwards) <= count + 16
    assert [phase(outputs) for outputs in race(bench, 8)][-1] == "done"


def test_a_refused_race_gives_its_turn_back(bench):
    (told,) = stream_race(bench, CONTROLS | {"prompt": " "}, "", False)
    assert phase(told) == "error" and len(bench_turns) == 0


@pytest.mark.parametrize("action", ["add_way", "remove_way"])
@pytest.mark.parametrize("view", ["{", "[]", '{"entries": [{"kind": "draft", "colour": 1}]}'])
def test_a_damaged_list_of_ways_is_answered_with_a_sentence(bench, action, view):
    handler = next(found.fn for found in build_app(bench).fns.values() if found.name == action)
    controls = ["Hi", 8, 4, 0.0, "target", "", 0]
    with pytest.raises(gr.Error, match="damaged|no field 'colour'"):
        handler(view, *(controls if action == "add_way" else [None]))
