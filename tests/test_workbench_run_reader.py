"""Runs are read while they are written, cut, damaged and deleted: always an answer, never a line twice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import tiny_config, write_conversations

from dflash.errors import UserError
from dflash.training.run_folder import RunFolder
from workbench.metric_lines import newest, read_on
from workbench.run_reader import RunsRoot
from workbench.run_summary import HEARTBEAT_BOUND, LatestRecords, duration, summarise


@pytest.fixture
def root(tmp_path) -> RunsRoot:
    return RunsRoot(tmp_path / "runs")


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    return tiny_config(tiny_target_folder, write_conversations(tmp_path / "data.jsonl"))


@pytest.fixture
def run(root, config) -> RunFolder:
    """As the trainer leaves it after four steps: two recorded, one validated, one decoded."""
    folder = RunFolder.create(root.root / "one", config)
    folder.set_status("running", step=4, max_steps=6)
    folder.append_metrics(train_record(2, loss=3.0))
    folder.append_metrics({"step": 3, "batch": 3, "kind": "validation", "loss": 2.5, "tau_estimate": 1.4})
    folder.append_metrics({"step": 3, "batch": 3, "kind": "decode", "decoded_tau": 1.25})
    folder.append_metrics(train_record(4, loss=2.0))
    return folder


def train_record(step: int, loss: float = 1.0) -> dict:
    return {
        "step": step,
        "batch": step,
        "kind": "train",
        "loss": loss,
        "tau_estimate": 1.1,
        "tokens": 50,
        "tokens_per_s": 10.0,
    }


def set_status(run: RunFolder, **record) -> None:
    (run.path / "status.json").write_text(json.dumps(record))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_running_run_tells_where_it_is_and_how_long_it_will_take(root, run):
    row = root.summary("one")
    assert (row.state, row.step, row.max_steps) == ("running", 4, 6)
    assert row.progress == pytest.approx(4 / 6)
    assert (row.loss, row.validation_loss, row.tau_estimate, row.decoded_tau) == (2.0, 2.5, 1.4, 1.25)
    assert row.eta_seconds == pytest.approx(2 * 5.0)  # 50 tokens at 10 per second, two steps to go
    assert row.problem == ""


def test_a_new_line_changes_the_row_and_old_ones_are_not_read_again(root, run):
    root.summary("one")
    run.append_metrics(train_record(5, loss=1.5))
    row = root.summary("one")
    assert (row.loss, row.validation_loss, row.decoded_tau) == (1.5, 2.5, 1.25)


def test_a_run_that_loads_is_starting(root, run):
    run.set_status("running")
    assert root.summary("one").state == "starting"


def test_a_silent_run_whose_process_is_gone_is_lost(root, run):
    set_status(run, state="running", pid=dead_pid(), heartbeat=time.time() - HEARTBEAT_BOUND - 5, step=4)
    row = root.summary("one")
    assert row.state == "lost" and "process is gone" in row.message


def test_a_short_silence_is_no_loss(root, run):
    set_status(run, state="running", pid=dead_pid(), heartbeat=time.time() - HEARTBEAT_BOUND / 2, step=4)
    assert root.summary("one").state == "running"


def test_a_silent_run_whose_process_lives_is_said_to_be_silent(run):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        set_status(run, state="running", pid=sleeper.pid, heartbeat=time.time(), step=4)
        row = summarise(run.path, LatestRecords(), now=time.time() + HEARTBEAT_BOUND + 5)
        assert row.state == "running" and "nothing was heard" in row.message
        # A process that began after the last heartbeat has only got the run's old number.
        set_status(run, state="running", pid=sleeper.pid, heartbeat=time.time() - HEARTBEAT_BOUND - 5, step=4)
        assert summarise(run.path, LatestRecords()).state == "lost"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_failed_run_says_why(root, run):
    run.set_status("failed", step=4, reason="UserError: the disk is full")
    row = root.summary("one")
    assert (row.state, row.message) == ("failed", "UserError: the disk is full")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"state": 7}', "\ufffd" * 50])
def test_a_damaged_status_is_a_sentence(root, run, content):
    (run.path / "status.json").write_text(content)
    row = root.summary("one")
    assert row.state == "lost"
    assert row.message.endswith(".") and row.loss == 2.0


def test_a_damaged_config_is_a_sentence_with_its_line(root, run):
    (run.path / "config.yaml").write_text("run:\n  max_steps: [6\nother")
    assert "config.yaml could not be read (no YAML in line" in root.summary("one").problem
    with pytest.raises(UserError, match="config.yaml of run 'one' could not be read"):
        root.settings("one")


def test_binary_garbage_in_every_file_breaks_nothing(root, run):
    garbage = bytes(range(256)) * 40
    for name in ("status.json", "config.yaml", "metrics.jsonl", "environment.json"):
        (run.path / name).write_bytes(garbage + b"\n" + garbage)
    row = root.summary("one")
    assert "status.json could not be read" in row.problem and "config.yaml could not be read" in row.problem
    assert root.metrics("one")[0] == []


def test_a_torn_last_line_waits_for_its_end(root, run):
    records, cursor = root.metrics("one")
    assert [record["step"] for record in records] == [2, 3, 3, 4]
    line = json.dumps(train_record(6)) + "\n"
    with open(run.metrics_file, "a") as file:
        file.write(line[:20])
    records, cursor = root.metrics("one", cursor)
    assert records == [] and cursor.unreadable == 0
    with open(run.metrics_file, "a") as file:
        file.write(line[20:])
    records, cursor = root.metrics("one", cursor)
    assert [record["step"] for record in records] == [6]
    assert root.metrics("one", cursor)[0] == []


def test_a_resumed_run_whose_file_was_cut_is_read_from_the_start(root, run):
    _, cursor = root.metrics("one")
    run.cut_metrics(3)
    run.append_metrics(train_record(4, loss=9.0))
    run.append_metrics(train_record(5, loss=8.0))  # the file is now longer than what was read before
    assert run.metrics_file.stat().st_size > cursor.offset
    records, after = root.metrics("one", cursor)
    assert after.restarts == cursor.restarts + 1
    assert [record["loss"] for record in records if record["kind"] == "train"] == [3.0, 9.0, 8.0]


def test_the_row_of_a_run_that_was_cut_forgets_what_was_cut(root, run):
    assert root.summary("one").decoded_tau == 1.25
    run.cut_metrics(2)
    row = root.summary("one")
    assert row.decoded_tau is None and row.loss == 3.0


def test_the_row_of_a_run_forgets_metrics_that_were_deleted_or_replaced(root, run):
    assert root.summary("one").decoded_tau == 1.25
    run.metrics_file.unlink()
    row = root.summary("one")
    assert row.decoded_tau is None and row.loss is None and row.tokens_per_second is None
    run.append_metrics(train_record(1, loss=5.0))
    assert root.summary("one").loss == 5.0
    run.metrics_file.write_text(json.dumps(train_record(1, loss=4.0))[:-1] + "}\n")  # as long as before
    assert root.summary("one").loss == 4.0


def test_lines_that_are_no_records_are_counted_and_left_out(root, run):
    root.summary("one")
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 5, "loss"\n[1, 2]\n{"loss": 1.0}\n' + "[" * 100_000 + "\n\n")
        file.write(json.dumps(train_record(6)) + "\n")
    records, cursor = root.metrics("one")
    assert [record["step"] for record in records] == [2, 3, 3, 4, 6]
    assert cursor.unreadable == 4
    assert "4 lines of metrics.jsonl could not be read" in root.summary("one").problem


def test_a_line_of_ten_megabytes_is_one_line(root, run):
    _, cursor = root.metrics("one")
    with open(run.metrics_file, "a") as file:
        file.write("x" * 10_000_000 + "\n" + json.dumps(train_record(6) | {"note": "y" * 10_000_000}) + "\n")
    records, cursor = root.metrics("one", cursor)
    assert [record["step"] for record in records] == [6] and cursor.unreadable == 1
    assert newest(run.metrics_file, {"train": 2})[0]["train"][0]["step"] == 4


def test_numbers_that_are_none_leave_the_cell_empty(root, run):
    run.append_metrics({"step": 6, "batch": 6, "kind": "train", "loss": float("nan"), "tokens_per_s": None})
    row = root.summary("one")
    assert row.loss is None and row.tokens_per_second is None


def test_a_run_deleted_while_it_is_looked_at_is_a_sentence(root, run):
    _, cursor = root.metrics("one")
    for path in sorted(run.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.path.rmdir()
    assert root.names() == [] and root.summaries() == []
    for ask in (lambda: root.summary("one"), lambda: root.metrics("one", cursor), lambda: root.settings("one")):
        with pytest.raises(UserError, match="There is no run 'one'"):
            ask()


def test_a_deleted_metrics_file_starts_over(root, run):
    _, cursor = root.metrics("one")
    run.metrics_file.unlink()
    records, after = root.metrics("one", cursor)
    assert records == [] and after.restarts == 1 and after.offset == 0


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../other", "/etc", "a/b", "a\\b", ".hidden", "x" * 101, "a\n", "a\0", None]
)
def test_names_that_are_none_are_refused(root, run, name):
    with pytest.raises(UserError, match="no plain name"):
        root.path(name)


def test_a_link_that_leads_out_of_the_folder_is_refused(root, run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.yaml").write_text("run: {}\n")
    (root.root / "sly").symlink_to(outside)
    with pytest.raises(UserError, match="lies outside"):
        root.path("sly")
    assert [row.name for row in root.summaries()] == ["one"]


def test_runs_are_listed_newest_first_and_other_folders_are_not(root, config):
    for age, name in enumerate(["c", "a", "b"]):
        path = RunFolder.create(root.root / name, config).path
        # A copied run's files are as young as the copy.
        (path / "environment.json").write_text(json.dumps({"started": 1e9 - age}))
        os.utime(path / "environment.json", (1e9 + age, 1e9 + age))
    old = RunFolder.create(root.root / "old", config).path
    (old / "environment.json").write_text("{}")
    os.utime(old / "environment.json", (9e8, 9e8))
    (root.root / "empty").mkdir()
    (root.root / ".jobs").mkdir()
    (root.root / "file.json").write_text("{}")
    assert root.names() == ["c", "a", "b", "old"]
    assert [row.started for row in root.summaries()] == [1e9, 1e9 - 1, 1e9 - 2, 9e8]


def test_no_runs_folder_is_no_runs(tmp_path):
    assert RunsRoot(tmp_path / "nowhere").summaries() == []


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_reading_from_either_end_finds_the_same_lines_whatever_the_chunks(tmp_path, monkeypatch, size):
    monkeypatch.setattr("workbench.metric_lines._CHUNK", size)
    path = Path(tmp_path) / "metrics.jsonl"
    records = [{"step": i, "kind": "train", "pad": "z" * (i % 5)} for i in range(9)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "kind": "tr')
    forward, cursor = read_on(path)
    assert forward == records
    backward, at_end = newest(path, {"train": 99})
    assert backward["train"] == records
    assert (at_end.offset, at_end.before) == (cursor.offset, cursor.before)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.6, "4 s"), (61, "1 min"), (3_599, "1 h 0 min"), (12_000, "3 h 20 min"), (187_000, "2 d 4 h")],
)
def test_durations_are_exact_enough_to_plan_with(seconds, words):
    assert duration(seconds) == words
