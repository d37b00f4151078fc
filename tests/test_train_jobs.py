"""Trainings as jobs: what is previewed is started, missing data is made first, and every state is told in words."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import waiting
from ending_jobs import end_all
from tiny_runs import write_conversations

from dflash.config import load_config
from dflash.errors import UserError
from workbench.run_request import RunRequest, prepare
from workbench.train_jobs import TrainJobs, data_job_name, missing_files, synthesis_in_words

until = partial(waiting.until, seconds=60.0)

QUICK = "smollm2-135m-quick"
WAITS = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Jobs of a runs folder; what a test leaves running is ended."""
    monkeypatch.chdir(tmp_path)
    desk = TrainJobs(tmp_path / "runs")
    yield desk
    end_all(desk.jobs)


def write_run(desk: TrainJobs, name: str, state: str, *, beat: float = 0.0, checkpoint: bool = False, **status) -> None:
    """A run folder as the trainer leaves it; its heart beat `beat` seconds ago."""
    folder = desk.runs.root / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {max_steps: 10}\n")
    record = {"state": state, "pid": os.getpid(), "heartbeat": time.time() - beat, **status}
    (folder / "status.json").write_text(json.dumps(record))
    if checkpoint:
        (folder / "checkpoints" / "step_0000005").mkdir()


def row(desk: TrainJobs, name: str) -> dict:
    return next(row for row in desk.rows() if row["name"] == name)


def request(tmp_path, **settings) -> RunRequest:
    data = write_conversations(tmp_path / "talks.jsonl", 40)
    return RunRequest(QUICK, {"data.train": data, **settings}, "mine")


def test_what_starts_is_what_was_previewed(desk, tmp_path):
    desk.jobs.start(WAITS, kind="evaluate", name="first")  # so that it waits, and nothing is trained here
    prepared = prepare(request(tmp_path, **{"run.max_steps": "3"}), desk.runs)
    job = desk.begin(prepared, queued=True)
    assert job.state == "queued" and job.kind == "train"
    assert load_config(job.config_file) == prepared.plan.config
    place = ("--runs", str(desk.runs.root), "--name", "mine")
    assert job.command == (sys.executable, "-m", "dflash", "train", str(job.config_file), *place)
    assert job.resume_command[-2:] == ("--resume", str(desk.runs.root / "mine"))
    assert row(desk, "mine")["place"] == 1 and row(desk, "mine")["actions"] == ["abort"]
    assert row(desk, "first")["actions"] == ["stop"]


def test_a_faulty_or_unready_request_is_refused_with_every_reason(desk, tmp_path):
    with pytest.raises(UserError, match="run.batch_size = 'x' is not usable") as refused:
        desk.begin(prepare(request(tmp_path, **{"run.batch_size": "x", "run.seed": "-1"}), desk.runs), queued=False)
    assert "run.seed" in str(refused.value)
    with pytest.raises(UserError, match="does not exist"):
        desk.begin(prepare(RunRequest(QUICK), desk.runs), queued=False)
    write_run(desk, "mine", "finished", checkpoint=True)
    with pytest.raises(UserError, match="already holds a run"):
        desk.begin(prepare(request(tmp_path), desk.runs), queued=False)
    assert desk.jobs.list() == []


def test_missing_data_is_made_first_and_the_run_waits_behind_it(desk):
    Path("data").mkdir()
    desk.jobs.start(WAITS, kind="evaluate", name="first")
    prepared = prepare(RunRequest(QUICK, name="mine"), desk.runs)
    assert missing_files(prepared) == ["data/quick.jsonl"]
    command = synthesis_in_words(prepared, "data/quick.jsonl")
    assert command.startswith("dflash synthesize --out data/quick.jsonl --self-instruct 128 --max-new-tokens 96")
    jobs = desk.begin_with_data(prepared)
    maker = data_job_name("data/quick.jsonl")
    assert [(job.name, job.kind) for job in jobs] == [(maker, "data"), ("mine", "train")]
    assert [row(desk, job.name)["place"] for job in jobs] == [1, 2]
    # While it is being made, more runs can wait for it, but none can start.
    again = prepare(RunRequest(QUICK, name="again"), desk.runs)
    assert desk.data_follows(again) and not desk.data_follows(prepare(RunRequest("smollm2-135m-cpu"), desk.runs))
    assert desk.begin(again, queued=True).state == "queued"
    with pytest.raises(UserError, match="does not exist"):
        desk.begin(prepare(RunRequest(QUICK, name="now"), desk.runs), queued=False)
    with pytest.raises(UserError, match="queued already"):
        desk.begin_with_data(again)
    write_conversations(Path("data/quick.jsonl"), 40)  # half written: there, but not done
    with pytest.raises(UserError, match=f"still being written by job '{maker}'"):
        desk.begin(prepare(RunRequest(QUICK, name="now"), desk.runs), queued=False)


def test_files_of_one_name_in_two_folders_are_made_by_two_jobs(desk):
    for folder in ("a", "b"):
        Path(folder).mkdir()
    desk.jobs.start(WAITS, kind="evaluate", name="first")
    files = ["a/talks.jsonl", "b/talks.jsonl"]
    prepared = prepare(RunRequest(QUICK, {"data.train": ",".join(files)}, "mine"), desk.runs)
    *makers, _ = desk.begin_with_data(prepared)
    assert [job.command[job.command.index("--out") + 1] for job in makers] == files
    assert data_job_name("a/talks.jsonl") == data_job_name(str(Path("a/talks.jsonl").absolute()))


def test_no_data_is_made_for_a_run_whose_name_is_taken(desk):
    Path("data").mkdir()
    desk.jobs.start(WAITS, kind="evaluate", name="mine")
    prepared = prepare(RunRequest(QUICK, name="mine"), desk.runs)
    with pytest.raises(UserError, match="running already"):
        desk.begin_with_data(prepared)
    assert [job.name for job in desk.jobs.list()] == ["mine"]


def test_data_is_not_made_for_a_run_that_lacks_something_else(desk):
    lacking = {"metrics.decode_every": "10", "metrics.decode_prompts": "/no/such/file.jsonl"}
    with pytest.raises(UserError, match="metrics.decode_prompts"):
        desk.begin_with_data(prepare(RunRequest(QUICK, lacking), desk.runs))
    assert desk.jobs.list() == []


def test_a_run_of_a_terminal_is_shown_while_its_heart_beats(desk):
    write_run(desk, "theirs", "running", step=3, max_steps=10)
    write_run(desk, "dead", "running", beat=3600)
    write_run(desk, "over", "finished")
    rows = desk.rows()
    assert [row["name"] for row in rows] == ["theirs"]
    assert (rows[0]["step"], rows[0]["max_steps"], rows[0]["actions"]) == (3, 10, [])
    assert "in a terminal" in rows[0]["problem"]


def test_a_job_without_a_run_yet_is_starting_and_one_asked_to_stop_is_stopping(desk):
    desk.jobs.start(WAITS, kind="train", name="mine")
    assert row(desk, "mine")["state"] == "starting"
    write_run(desk, "mine", "running", step=1, max_steps=10)
    assert row(desk, "mine")["state"] == "running" and row(desk, "mine")["progress"] == 0.1
    (desk.jobs.get("mine").folder / "stop.json").write_text(json.dumps({"time": time.time(), "grace": 60}))
    assert (row(desk, "mine")["state"], row(desk, "mine")["actions"]) == ("stopping", ["kill"])


def test_resuming_needs_a_checkpoint_and_a_run_that_rests(desk):
    with pytest.raises(UserError, match="no run 'gone'"):
        desk.resume("gone")
    write_run(desk, "early", "failed")
    with pytest.raises(UserError, match="no checkpoint"):
        desk.resume("early")
    write_run(desk, "busy", "running", step=1, checkpoint=True)
    with pytest.raises(UserError, match="stop it first"):
        desk.resume("busy")


def test_a_failed_job_says_why_and_offers_to_go_on_only_from_a_checkpoint(desk):
    command = [sys.executable, "-c", "print('dflash: data.train is damaged: mend it.'); raise SystemExit(2)"]
    desk.jobs.start(command, kind="train", name="mine", resume_command=command)
    until(lambda: row(desk, "mine")["state"] == "failed")
    assert row(desk, "mine")["problem"] == "data.train is damaged: mend it."
    assert row(desk, "mine")["exit_code"] == 2 and row(desk, "mine")["actions"] == []
    write_run(desk, "mine", "failed", checkpoint=True)
    assert row(desk, "mine")["actions"] == ["resume"]
    assert "data.train is damaged" in row(desk, "mine")["tail"]


def test_an_evaluation_with_an_output_that_differs_is_done_and_says_so(desk, tmp_path):
    command = [sys.executable, "-c", "import sys; open(sys.argv[2], 'w'); sys.exit(1)", "--json", str(tmp_path / "out")]
    desk.jobs.start(command, kind="evaluate", name="compared")
    until(lambda: not desk.jobs.get("compared").active)
    assert row(desk, "compared")["state"] == "done" and "identical" in row(desk, "compared")["problem"]


def test_while_something_runs_a_run_can_wait_to_be_resumed(desk):
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    desk.jobs.start(command, kind="train", name="mine", resume_command=WAITS)
    until(lambda: not desk.jobs.get("mine").active)
    write_run(desk, "mine", "failed", checkpoint=True)
    write_run(desk, "theirs", "stopped", checkpoint=True)
    assert row(desk, "mine")["actions"] == ["resume"]
    desk.jobs.start(WAITS, kind="evaluate", name="first")
    assert row(desk, "mine")["actions"] == ["queue", "resume"]
    for name in ("mine", "theirs"):
        assert desk.resume(name, queued=True).state == "queued"
    assert [row(desk, name)["place"] for name in ("mine", "theirs")] == [1, 2]


def test_a_run_whose_keeper_was_killed_is_as_finished_as_it_says(desk):
    desk.jobs.start([sys.executable, "-c", ""], kind="train", name="mine")
    until(lambda: not desk.jobs.get("mine").active and not desk.jobs.get("mine").keeper.is_alive())
    (desk.jobs.get("mine").folder / "exit.json").unlink()
    assert row(desk, "mine")["state"] == "lost"
    write_run(desk, "mine", "finished", step=10)
    assert row(desk, "mine")["state"] == "done" and row(desk, "mine")["problem"] == ""


@pytest.mark.parametrize(("config", "ranks"), [("run: {}", 4), ("features: {source: online}", 1)])
def test_a_run_of_a_terminal_goes_on_with_as_many_ranks(desk, config, ranks):
    write_run(desk, "theirs", "stopped", checkpoint=True)
    folder = desk.runs.root / "theirs"
    (folder / "config.yaml").write_text(config)
    (folder / "checkpoints" / "step_0000005" / "trainer.json").write_text('{"step": 5, "world_size": 4}')
    desk.jobs.start(WAITS, kind="evaluate", name="first")
    job = desk.resume("theirs")
    desk.stop("theirs", grace=0)
    assert ("--nproc-per-node" in job.command) == (ranks > 1)
    assert job.command[-3:] == ("train", "--resume", str(folder))
