"""The race streams the engine's own steps, and ends with the verdict of the comparison."""

import json
from pathlib import Path

import pytest
from workbench_server import save_tiny_draft

from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from workbench.bench import Bench
from workbench.pages.decode import _control_value, _linked_settings
from workbench.race import Race
from workbench.race_record import exported, parse_record, picture_of
from workbench.race_settings import RaceSettings, parse_history
from workbench.record import main as record


@pytest.fixture(scope="module")
def draft_folder(tiny_target, tmp_path_factory) -> str:
    return save_tiny_draft(tiny_target, tmp_path_factory.mktemp("race") / "draft")


@pytest.fixture(scope="module")
def bench(tiny_target_folder, draft_folder) -> Bench:
    return Bench(tiny_target_folder, draft_folder, Path("no-runs"))


def test_pictures_grow_and_end_with_both_lanes_done(bench):
    race = Race(bench, RaceSettings("Hello there.", max_new_tokens=24))
    pictures = list(race.run())
    counts = [len(picture["target"]["steps"]) for picture in pictures]
    assert counts == sorted(counts)
    last = pictures[-1]
    assert last["phase"] == "done" and last["verdict"]["state"] == "identical"
    assert last["target"]["done"] and last["draft"]["done"]
    assert last["speedup"] == race.record.comparison().speedup


def test_a_lane_says_exactly_what_the_trace_says(bench):
    race = Race(bench, RaceSettings("Hello there.", max_new_tokens=24))
    lane = list(race.run())[-1]["draft"]
    trace = race.record.comparison().draft
    assert [step["accepted"] for step in lane["steps"]] == [step.accepted for step in trace.steps]
    assert [len(step["emitted"]) for step in lane["steps"]] == [len(step.emitted) for step in trace.steps]
    assert lane["total_s"] == pytest.approx(trace.prefill_s + trace.seconds)
    ends = [step["end_s"] for step in lane["steps"]]
    assert ends == sorted(ends)


def test_closing_a_race_ends_its_decoding(bench):
    race = Race(bench, RaceSettings("Go on.", max_new_tokens=400))
    running = race.run()
    for picture in running:
        if picture["target"]["steps"]:
            break
    before = len(race._traces["target"].steps)
    running.close()
    assert len(race._traces["target"].steps) == before
    assert list(Race(bench, RaceSettings("Next.", max_new_tokens=4)).run())[-1]["phase"] == "done"


def test_both_sides_continue_from_the_same_history(bench):
    def prompt_tokens(history):
        race = Race(bench, RaceSettings("And then?", max_new_tokens=8, history=parse_history(history)))
        list(race.run())
        traces = race.record.comparison()
        assert traces.target.prompt_tokens == traces.draft.prompt_tokens == traces.reference.prompt_tokens
        assert traces.identical
        return traces.draft.prompt_tokens

    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello, you."}]
    assert prompt_tokens(said) > prompt_tokens([]) + len("Hi.Hello, you.")


@pytest.mark.parametrize(
    "history",
    [
        '{"role"',
        '"text"',
        '[{"role": "user"}]',
        '[{"role": "user", "content": " "}]',
        '[{"role": "tool", "content": "x"}]',
        json.dumps([{"role": "user", "content": "x"}] * 65),
    ],
)
def test_a_history_that_is_no_conversation_is_refused_in_a_sentence(history):
    with pytest.raises(UserError, match="^The link's history"):
        RaceSettings.from_query({"history": history}, RaceSettings(""))


def test_an_exported_race_is_drawn_again_exactly_as_it_was(bench):
    race = Race(bench, RaceSettings("Hello there.", max_new_tokens=24))
    last = list(race.run())[-1]
    again = json.loads(json.dumps(exported(race.record)))
    assert picture_of(parse_record(again), race.id) == last


def test_models_are_loaded_once(bench, draft_folder):
    assert bench.engine("") is bench.engine(draft_folder)
    assert bench.block_size() == 4


def test_checkpoints_of_runs_are_offered_as_drafts(tiny_target, tiny_target_folder, tmp_path):
    folder = save_tiny_draft(tiny_target, tmp_path / "runs" / "first" / "checkpoints" / "step_0000010" / "draft")
    assert folder in Bench(tiny_target_folder, "", tmp_path / "runs").drafts()


def test_links_name_settings_and_keep_the_other_defaults():
    settings = RaceSettings.from_query({"prompt": "Hi", "block_size": "3", "other": "x", "draft": ""}, RaceSettings("", draft="d"))
    assert settings == RaceSettings("Hi", block_size=3, draft="d")


def test_a_link_to_another_draft_takes_that_drafts_block_size(bench, tiny_target, tmp_path):
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=2, block_size=6)
    DFlashDraft(config).save_pretrained(tmp_path / "other")
    linked = _linked_settings(bench, {"prompt": "Hi", "draft": str(tmp_path / "other")})
    slider = _control_value(bench, "block_size", linked)
    assert (slider.value, slider.maximum) == (6, 6)
    race = Race(bench, linked)
    list(race.run())
    assert race.record.comparison().draft.block_size == 6


@pytest.mark.parametrize(("name", "value"), [("block_size", "many"), ("temperature", "nan"), ("max_new_tokens", "1.5")])
def test_a_broken_link_names_the_setting(name, value):
    with pytest.raises(UserError, match=name):
        RaceSettings.from_query({name: value}, RaceSettings(""))


def test_recording_keeps_machine_date_and_traces(tiny_target_folder, draft_folder, tmp_path, capsys):
    out = tmp_path / "race.json"
    options = ["--target", tiny_target_folder, "--draft", draft_folder, "--max-new-tokens", "8", "--out", str(out)]
    assert record(options) == 0
    recording = json.loads(out.read_text())
    assert set(recording["recorded"]) == {"machine", "date", "command"}
    assert parse_record(recording["record"]).comparison().identical is True
    assert "identical True" in capsys.readouterr().out


def test_recording_without_a_draft_is_one_sentence(tiny_target_folder, tmp_path, capsys):
    assert record(["--target", tiny_target_folder, "--out", str(tmp_path / "race.json")]) == 2
    assert "No draft is shipped" in capsys.readouterr().err
    assert not (tmp_path / "race.json").exists()
