"""Whatever is timed beside a running job says so: on the page, in the saved trace and in the export."""

import json
import sys
from pathlib import Path

import pytest
from waiting import until
from workbench_server import PATIENCE, save_tiny_draft

from dflash.decoding.ways import Way
from workbench.beside import Beside
from workbench.bench import Bench
from workbench.jobs import Jobs
from workbench.pages.decode import stream_race
from workbench.race import Race
from workbench.race_record import exported, parse_record
from workbench.race_settings import RaceSettings
from workbench.traces import open_trace, save_trace, saved_picture
from workbench.ways_view import compare_ways

SENTENCE = "Times are spoilt by 'busy', computing beside this."


@pytest.fixture(scope="module")
def bench(tiny_target, tiny_target_folder, tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("beside")
    return Bench(tiny_target_folder, save_tiny_draft(tiny_target, folder / "draft"), folder / "runs")


@pytest.fixture
def busy(bench):
    """A job that runs as long as the test."""
    jobs = Jobs(bench.runs)
    jobs.start([sys.executable, "-c", "import time; time.sleep(300)"], kind="train", name="busy")
    yield jobs
    end(jobs, "busy")


def end(jobs: Jobs, name: str) -> None:
    if jobs.get(name).state == "running":
        jobs.stop(name, grace=0)
    until(lambda: jobs.get(name).state != "running", 30 * PATIENCE)


def run(bench) -> tuple[Race, list[dict]]:
    race = Race(bench, RaceSettings("Hello there.", max_new_tokens=8))
    return race, list(race.run())


def test_a_race_beside_a_running_job_says_so_while_it_runs_when_it_is_saved_and_exported(bench, busy, tmp_path):
    race, pictures = run(bench)
    assert [picture["beside"] for picture in pictures if picture["phase"] in ("target", "done")][-1] == SENTENCE
    assert next(picture for picture in pictures if picture["phase"] == "target")["beside"] == SENTENCE
    assert exported(race.record)["beside"] == SENTENCE
    again = open_trace(tmp_path, save_trace(tmp_path, race.record))
    assert saved_picture(again)["beside"] == SENTENCE and exported(again)["beside"] == SENTENCE


def test_the_page_gets_the_sentence_with_the_finished_race(bench, busy):
    controls = {"prompt": "Hello.", "max_new_tokens": 8, "temperature": 0.0, "rule": "target", "draft": ""}
    *_, last = stream_race(bench, controls, "", False)
    shown, details = json.loads(last[0]), json.loads(last[1])
    assert shown["beside"] == details["trace"]["beside"] == SENTENCE


def test_a_race_alone_on_its_machine_says_nothing(bench):
    race, pictures = run(bench)
    assert race.record.beside == "" and {picture["beside"] for picture in pictures} == {""}


def test_a_job_that_ended_before_the_last_timed_stretch_is_named_all_the_same(bench, busy):
    race = Race(bench, RaceSettings("Hello there.", max_new_tokens=8))
    running = race.run()
    assert any(picture["phase"] == "target" for picture in running)
    end(busy, "busy")
    list(running)
    assert race.record.beside == SENTENCE


def test_a_trace_of_before_this_was_noted_opens_and_claims_nothing(bench):
    record = exported(run(bench)[0].record)
    del record["beside"]
    assert parse_record(record).beside == ""


def test_a_comparison_beside_a_running_job_says_so_in_every_row(bench, busy):
    rows = compare_ways(bench, RaceSettings("Hello there.", max_new_tokens=8), [Way("draft")], 1)
    assert len(rows) > 1 and {row["beside"] for row in rows} == {SENTENCE}


def test_only_jobs_that_run_are_named_and_each_once(tmp_path: Path):
    jobs, beside = Jobs(tmp_path), Beside(tmp_path)
    beside.look()
    assert beside.sentence == ""
    for name in ("one", "two"):
        jobs.start([sys.executable, "-c", "import time; time.sleep(300)"], kind="train", name=name)
    jobs.enqueue([sys.executable, "-c", "pass"], kind="train", name="later")
    try:
        for _ in range(2):
            beside.look()
        assert beside.sentence.count("'one'") == beside.sentence.count("'two'") == 1
        assert "later" not in beside.sentence
    finally:
        jobs.abort("later")
        for name in ("one", "two"):
            end(jobs, name)
