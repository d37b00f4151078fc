"""Results, prompt sets and evaluation jobs of the workbench: found by name, kept inside their folders, really run."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from acceptance_results import write_result
from ending_jobs import end_all
from workbench_server import save_tiny_draft

from dflash.errors import UserError
from dflash.evaluation.report_file import read_report
from workbench.bench import Bench
from workbench.evaluate_jobs import EvaluateJobs, EvaluationRequest
from workbench.evaluations import RECORDED, Evaluations
from workbench.prompt_store import PromptStore


@pytest.fixture(scope="module")
def result_file(tiny_target, tmp_path_factory):
    return write_result(tiny_target, tmp_path_factory.mktemp("results") / "result.json", right=2)


@pytest.fixture
def runs(result_file, tmp_path):
    for place in (".evaluations/loose.json", "run-1/eval/step_2.json"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(result_file.read_bytes())
    return tmp_path


def test_results_of_runs_and_loose_ones_are_found_by_name(runs):
    results = Evaluations(runs)
    assert {"loose", "run-1/step_2"} <= set(results.names())
    assert results.load("run-1/step_2").counts == results.load("loose").counts
    assert results.load("loose") is results.load("loose"), "read once"


def test_the_newest_result_comes_first_and_the_recorded_one_last(runs):
    newer = runs / ".evaluations" / "newer.json"
    newer.write_bytes((runs / ".evaluations" / "loose.json").read_bytes())
    later = time.time() + 60

    os.utime(newer, (later, later))
    names = Evaluations(runs).names()
    assert names[0] == "newer" and (RECORDED not in names or names[-1] == RECORDED)


@pytest.mark.parametrize("name", ["../secret", "a/b/c", "", "/etc/passwd", "run-1/../loose", ".hidden", 7])
def test_names_that_are_paths_are_refused(runs, name):
    with pytest.raises(UserError, match="no plain name"):
        Evaluations(runs).load(name)


def test_a_link_that_leads_out_of_the_runs_folder_is_refused(runs, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.json"
    outside.write_text("{}")
    (runs / ".evaluations" / "link.json").symlink_to(outside)
    with pytest.raises(UserError, match="outside"):
        Evaluations(runs).load("link")


def test_a_deleted_damaged_or_replaced_result_is_noticed(runs):
    results = Evaluations(runs)
    first = results.load("loose")
    path = runs / ".evaluations" / "loose.json"
    changed = json.loads(path.read_text())
    changed["draft_name"] = "another"
    path.write_text(json.dumps(changed))
    assert first.draft_name == "scripted" and results.load("loose").draft_name == "another"
    path.write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        results.load("loose")
    path.unlink()
    with pytest.raises(UserError, match="no result 'loose'"):
        results.load("loose")


def test_prompt_files_are_checked_copied_and_offered(tmp_path):
    store = PromptStore(tmp_path / "runs")
    assert store.names() == ["examples"] and store.size("examples") > 8
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a", "turns": ["Hello"]}\n')
    assert store.add(file) == "mine"
    file.unlink()
    assert store.names() == ["examples", "mine"] and store.size("mine") == 1
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="^bad.jsonl, line 1.*turns"):
        store.add(bad)
    other = tmp_path / "elsewhere" / "mine.jsonl"
    other.parent.mkdir()
    other.write_text('{"id": "b", "turns": ["Other"]}\n')
    with pytest.raises(UserError, match="another prompt set 'mine'"):
        store.add(other)
    for name in ("../x", "", "a/b"):
        with pytest.raises(UserError, match="no plain name"):
            store.path(name)
    with pytest.raises(UserError, match="no prompt set 'gone'"):
        store.path("gone")


@pytest.fixture
def desk(tiny_target, tiny_target_folder, tmp_path) -> EvaluateJobs:
    draft = save_tiny_draft(tiny_target, tmp_path / "runs" / "run-1" / "checkpoints" / "step_0000002" / "draft")
    desk = EvaluateJobs(Bench(tiny_target_folder, draft, tmp_path / "runs", device="cpu", dtype="float32"))
    desk.prompts.folder.mkdir(parents=True)
    (desk.prompts.folder / "two.jsonl").write_text(
        '{"id": "a", "turns": ["Hello"]}\n{"id": "b", "turns": ["Привет"]}\n', encoding="utf-8"
    )
    yield desk
    end_all(desk.jobs)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (EvaluationRequest("", ()), "No prompt set is chosen"),
        (EvaluationRequest("", ("gone",)), "no prompt set 'gone'"),
        (EvaluationRequest("/no/such/draft", ("two",)), "/no/such/draft"),
        (EvaluationRequest("shipped", ("two",)), "No draft is shipped"),
        (EvaluationRequest("", ("two",), limit=-1), "must not be negative"),
        (EvaluationRequest("", ("two",), max_new_tokens=99_999_999), "99,999,999 new tokens.*of context.*ask for fewer"),
        (EvaluationRequest("", ("two",), block_size=5), "5 is out of range: choose from 2 to 4"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_a_job_is_made(desk, request_, said):
    with pytest.raises(UserError, match=said):
        desk.evaluate(request_)
    assert desk.jobs.list() == []


def test_a_damaged_draft_is_refused_before_a_job_is_made(desk):
    weights = Path(desk.bench.draft_name) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for begin in (lambda: desk.evaluate(EvaluationRequest("", ("two",))), lambda: desk.benchmark("")):
        with pytest.raises(UserError, match="is damaged"):
            begin()
    assert desk.jobs.list() == []


def test_an_evaluation_that_waits_knows_its_place_behind_everything_that_was_queued_before(desk):
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="train", name="first")
    desk.jobs.enqueue([sys.executable, "-c", "import time; time.sleep(60)"], kind="train", name="second")
    desk.evaluate(EvaluationRequest("", ("two",)))
    assert [row["place"] for row in desk.rows()] == [2]


def test_an_evaluation_runs_as_a_job_and_its_result_lands_in_the_drafts_run(desk):
    job, name = desk.evaluate(EvaluationRequest("", ("two",), limit=0, max_new_tokens=4))
    assert name.startswith("run-1/step_0000002-")
    row = _finished(desk, job.name)
    assert (row["state"], row["result"]) == ("done", name), row
    result = desk.results.load(name)
    assert result.draft_name == "run-1/step_0000002"
    assert {answer.language for answer in result.answers} == {"Latin script", "Cyrillic script"}
    assert name in desk.results.names()
    with pytest.raises(UserError, match="no action 'dance'"):
        desk.act("dance", job.name)


def test_evaluations_that_are_asked_for_within_one_second_are_two(desk, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "1123-120000")
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="train", name="first")
    for name in ("run-1/step_0000002-1123-120000", "run-1/step_0000002-1123-120000-2"):
        assert desk.evaluate(EvaluationRequest("", ("two",)))[1] == name
    assert len({desk.benchmark("").name for _ in range(3)}) == 3


def test_a_long_name_does_not_cut_off_what_tells_evaluations_apart(desk, tiny_target, tmp_path):
    draft = save_tiny_draft(tiny_target, tmp_path / ("long-" * 25))
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="train", name="first")
    jobs = [desk.evaluate(EvaluationRequest(draft, ("two",)))[0] for _ in range(2)]
    assert jobs[0].name != jobs[1].name and jobs[0].result_file != jobs[1].result_file


def test_an_evaluation_that_failed_behind_its_result_shows_both_and_cannot_go_on(desk):
    out = desk.results.path("loose")
    command = [sys.executable, "-c", "import sys; open(sys.argv[2], 'w'); sys.exit(2)", "--json", str(out)]
    out.parent.mkdir(parents=True)
    desk.jobs.start(command, kind="evaluate", name="late", resume_command=command)
    row = _finished(desk, "late")
    assert (row["state"], row["result"], row["actions"]) == ("failed", "loose", []) and "exit code 2" in row["problem"]
    out.unlink()
    assert desk.rows()[0]["actions"] == ["resume"]


def test_an_evaluation_that_is_resumed_waits_for_its_turn(desk):
    command = [sys.executable, "-c", "raise SystemExit(2)", "--json", str(desk.results.path("loose"))]
    desk.jobs.start(command, kind="evaluate", name="late", resume_command=command)
    _finished(desk, "late")
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="train", name="first")
    desk.act("resume", "late")
    assert desk.rows()[0]["state"] == "queued"


def test_block_sizes_are_measured_as_a_job_and_shown_instead_of_the_recorded_ones(desk):
    job = desk.benchmark("", prompts=1, max_new_tokens=4)
    assert _finished(desk, job.name)["state"] == "done"
    sizes, recorded = desk.results.block_sizes()
    assert recorded is None and [row.block_size for row in sizes.rows] == [2, 3, 4]


def test_jobs_of_other_kinds_are_left_alone(desk):
    desk.jobs.enqueue(["true"], kind="train", name="training")
    with pytest.raises(UserError, match="no evaluation"):
        desk.act("stop", "training")
    assert all(row["name"] != "training" for row in desk.rows())


def _finished(desk: EvaluateJobs, name: str) -> dict:
    deadline = time.monotonic() + 240
    while True:
        row = next(row for row in desk.rows() if row["name"] == name)
        if row["state"] not in ("queued", "running"):
            return row
        assert time.monotonic() < deadline, row["tail"]
        time.sleep(0.3)


def test_recordings_are_marked_and_damaged_ones_refused(result_file, tmp_path):
    from workbench.record_evaluation import keep

    sizes = tmp_path / "sizes.json"
    sizes.write_text(
        json.dumps(
            {
                "format": 1,
                "kind": "block sizes",
                "settings": {"draft": "x", "prompts": 1},
                "machine": {"cpu": "C", "threads": 2, "dtype": "float32"},
                "target_ms": 2.0,
                "sizes": [
                    {
                        "block_size": 2,
                        "draft_ms": 1.0,
                        "verify_ms": 2.0,
                        "overhead_ms": 0.1,
                        "steps": 3,
                        "tau": 1.5,
                        "speedup": 1.1,
                        "speedup_range": [1.0, 1.2],
                    }
                ],
            }
        )
    )
    keep(result_file, sizes, tmp_path / "out", "the command", "a note")
    assert read_report(tmp_path / "out" / "evaluation.json").counts == read_report(result_file).counts
    mark = json.loads((tmp_path / "out" / "block_sizes.json").read_text())["recorded"]
    assert mark["machine"] == "C, 2 threads, float32, a note" and mark["command"] == "the command"
    sizes.write_text("{}")
    with pytest.raises(UserError, match="no result of `dflash benchmark`"):
        keep(result_file, sizes, tmp_path / "out", "the command")
