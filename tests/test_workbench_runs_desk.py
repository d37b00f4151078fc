"""Everything the Runs page can be asked: rows joined with jobs, logs, notes, differences, checkpoints, exports."""

import csv
import io
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ending_jobs import end_all
from runs_folders import write_run
from test_online_balance import record as online_record

from dflash.errors import UserError
from workbench import run_notes
from workbench.config_diff import differences
from workbench.pages.runs import answered
from workbench.run_log import log_tail
from workbench.run_notes import MOST_TAGS, read_notes, write_notes
from workbench.runs_desk import RunsDesk


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def desk(root) -> RunsDesk:
    return RunsDesk(root)


def states(desk: RunsDesk) -> dict[str, str]:
    return {row["name"]: row["state"] for row in desk.table()["rows"]}


def wait_for(condition, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_no_folder_is_an_empty_table(desk):
    assert desk.table()["rows"] == []


def test_a_queued_run_is_first_and_can_only_be_aborted(desk, root):
    write_run(root, "old")
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="other", name="blocker")
    try:
        desk.jobs.enqueue([sys.executable, "-c", ""], kind="train", name="next")
        first, second = desk.table()["rows"]
        assert (first["name"], first["state"], second["name"]) == ("next", "queued", "old")
        assert first["can_abort"] and not first["can_stop"] and not first["can_resume"]
        assert desk.run(["next"])["row"]["state"] == "queued"
        assert desk.curves(["next"])["panels"] == []
        assert desk.act("next", "abort") == {"row": None}
        assert states(desk) == {"old": "finished"}
    finally:
        end_all(desk.jobs)


def test_a_run_that_died_before_its_first_status_says_why(desk):
    desk.jobs.start([sys.executable, "-c", "raise ValueError('no data there')"], kind="train", name="broken")
    wait_for(lambda: desk.jobs.get("broken").state == "failed")
    (row,) = desk.table()["rows"]
    assert row["state"] == "failed" and "no data there" in row["message"]
    assert "ValueError" in "\n".join(desk.log("broken", source="output")["lines"])


def test_a_job_that_runs_before_its_folder_tells_is_starting_and_can_be_stopped(desk):
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="train", name="slow")
    (row,) = desk.table()["rows"]
    assert row["state"] == "starting" and row["can_stop"]
    desk.act("slow", "stop")
    wait_for(lambda: desk.jobs.get("slow").state == "stopped")
    assert states(desk) == {"slow": "stopped"}


def test_a_run_of_a_terminal_is_stopped_there(desk, root):
    write_run(root, "mine", state="running")
    (row,) = desk.table()["rows"]
    assert row["state"] == "running" and not row["can_stop"]
    with pytest.raises(UserError, match="Ctrl-C where it was started"):
        desk.act("mine", "stop")


def test_only_what_stopped_early_and_saved_something_can_be_resumed(desk, root):
    write_run(root, "without", state="stopped")
    (write_run(root, "with", state="stopped").checkpoints / "step_0000020").mkdir(parents=True)
    (write_run(root, "done").checkpoints / "step_0000040").mkdir(parents=True)
    resumable = {row["name"]: row["can_resume"] for row in desk.table()["rows"]}
    assert resumable == {"without": False, "with": True, "done": False}
    with pytest.raises(UserError, match="no checkpoint"):
        desk.act("without", "resume")


def test_beside_another_job_a_run_can_be_queued_to_go_on_and_stays_when_it_is_taken_out(desk, root):
    (write_run(root, "mine", state="stopped").checkpoints / "step_0000020").mkdir(parents=True)
    assert not desk.run(["mine"])["row"]["can_queue"]
    desk.jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], kind="other", name="blocker")
    try:
        assert desk.run(["mine"])["row"]["can_queue"] and desk.table()["rows"][0]["can_queue"]
        assert desk.act("mine", "queue")["row"]["state"] == "queued"
        assert desk.act("mine", "abort")["row"]["state"] == "stopped"
    finally:
        end_all(desk.jobs)


def test_unknown_actions_runs_and_spans_are_sentences(desk, root):
    write_run(root, "one")
    for ask, sentence in (
        (lambda: desk.act("one", "explode"), "no action 'explode'"),
        (lambda: desk.curves(["nothing"]), "There is no run 'nothing'"),
        (lambda: desk.curves(["../one"]), "no plain name"),
        (lambda: desk.curves("one"), "list of names"),
        (lambda: desk.curves([f"r{i}" for i in range(7)]), "choose up to 6"),
        (lambda: desk.curves(["one"], [5, 5]), "no range of steps"),
        (lambda: desk.curves(["one"], [0, float("inf")]), "no range of steps"),
        (lambda: desk.curves(["one"], points=1), "1 points"),
        (lambda: desk.run([]), "No run is chosen"),
        (lambda: desk.log("one", source="/etc/passwd"), "There is no log"),
        (lambda: desk.log("one", lines=0), "0 lines"),
    ):
        with pytest.raises(UserError, match=sentence):
            ask()


def test_curves_are_sent_again_only_when_something_is_new(desk, root):
    run = write_run(root, "one", steps=20)
    first = desk.curves(["one"])
    assert desk.curves(["one"], seen=first["stamp"]) is None
    assert desk.curves(["one"], [3, 9], seen=first["stamp"]) is not None
    run.append_metrics({"step": 21, "batch": 21, "kind": "decode", "decoded_tau": 1.5})
    assert desk.curves(["one"], seen=first["stamp"])["span"] == [1, 21]


def test_a_resumed_run_draws_what_it_recorded_the_second_time(desk, root):
    run = write_run(root, "one", steps=20)
    desk.curves(["one"])
    run.cut_metrics(10)
    run.append_metrics({"step": 11, "batch": 11, "kind": "train", "loss": 99.0})
    view = desk.curves(["one"])
    (loss,) = (curve for curve in view["panels"][0]["curves"] if curve["label"] == "training")
    assert loss["x"][-1] == 11 and loss["y"][-1] == 99.0 and len(loss["x"]) == 11


def test_who_waits_is_said_in_words(desk, root):
    run = write_run(root, "one", steps=20)
    assert "Nobody waits" in desk.curves(["one"])["balance"]["words"]
    for step in range(21, 45):
        run.append_metrics({"step": step, "batch": step, "kind": "train", "loss": 1.0, "data_wait_percent": 40.0})
    assert "waits for its features" in desk.curves(["one"])["balance"]["words"]
    assert "40.0 %" in desk.curves(["one"])["balance"]["words"]


def test_no_split_is_suggested_that_the_runs_own_config_forbids(desk, root):
    """Eight GPUs: 3 serving and 5 training would be fastest, but 24 rows cannot be shared by 5 ranks."""
    for name, size in (("any", 60), ("even", 24)):
        run = write_run(root, name, steps=1, run={"batch_size": size, "micro_batch_size": 1})
        for number in range(1, 6):
            run.append_metrics(online_record(number, wait=50.0))
    any_split, even = (desk.curves([name])["balance"]["words"] for name in ("any", "even"))
    assert "3 serving and 5 training" in any_split
    assert "5 training" not in even and "GPUs" in even
    (root / "any" / "config.yaml").write_text("run: {batch_size: many}\n")
    desk.curves(["any"])  # of another version: its balance is told all the same


@pytest.mark.parametrize("part", [[1], "?", 7, {"servers": [None]}, {"servers": "?"}])
def test_a_record_whose_online_part_is_none_draws_the_rest(desk, root, part):
    run = write_run(root, "one", steps=20)
    run.append_metrics({"step": 21, "batch": 21, "kind": "train", "loss": 1.0, "online": part})
    view = desk.curves(["one"])
    assert view["span"] == [1, 21] and "no record of the pipeline" in view["balance"]["words"]


def test_the_log_is_searched_from_its_end(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {i} {'even' if i % 2 == 0 else 'odd'}\n" for i in range(1_000)))
    tail = log_tail(path, "EVEN", lines=2)
    assert tail.lines == ("line 996 even", "line 998 even") and tail.matching == 500
    assert log_tail(tmp_path / "missing").lines == ()


def test_a_progress_bar_counts_as_its_last_state(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("10 %\r50 %\r100 %\rdone\r\nnext\x0cpage\n")
    assert log_tail(path).lines == ("done", "next\x0cpage")


def test_a_line_of_twenty_megabytes_is_cut(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("x" * 20_000_000 + "\nlast\n")
    tail = log_tail(path)
    assert tail.lines[-1] == "last" and len(tail.lines[0]) < 2_100
    assert tail.searched < tail.size


def test_notes_survive_and_are_not_overwritten_unseen(desk, root):
    run = write_run(root, "one")
    saved = desk.save_notes("one", "good", "a, b  a")
    assert (saved["text"], saved["tags"]) == ("good", "a b")
    assert desk.table()["rows"][0]["tags"] == ["a", "b"]
    write_notes(run.path, "changed elsewhere", "")
    with pytest.raises(UserError, match="changed elsewhere"):
        desk.save_notes("one", "mine", "", saved["version"])
    assert read_notes(run.path).text == "changed elsewhere"


def test_of_two_tabs_that_save_at_once_only_one_wins(desk, root, monkeypatch):
    """Both have looked before either writes, unless one of them has to wait."""
    run = write_run(root, "one")
    seen = read_notes(run.path).version

    def looks_slowly(path):
        notes = read_notes(path)
        time.sleep(0.2)
        return notes

    monkeypatch.setattr(run_notes, "read_notes", looks_slowly)
    with ThreadPoolExecutor(2) as tabs:
        saved = [tabs.submit(write_notes, run.path, text, "", seen) for text in ("mine", "yours")]
        failures = [tab.exception() for tab in saved]
    assert sorted(failure is None for failure in failures) == [False, True]
    winner = "mine" if failures[0] is None else "yours"
    assert read_notes(run.path).text == winner


def test_notes_that_are_too_long_or_damaged_are_sentences(desk, root):
    run = write_run(root, "one")
    with pytest.raises(UserError, match="20,001 characters"):
        desk.save_notes("one", "x" * 20_001, "")
    with pytest.raises(UserError, match=f"up to {MOST_TAGS} words"):
        desk.save_notes("one", "", " ".join(map(str, range(MOST_TAGS + 1))))
    (run.path / "notes.json").write_text("[]")
    assert "could not be read" in desk.table()["rows"][0]["message"]


def test_only_settings_that_differ_are_compared():
    rows = differences([{"a": {"x": 1, "y": [1, 2]}, "b": True}, {"a": {"x": 2, "y": [1, 2]}, "c": None}])
    assert rows == [("a.x", ("1", "2")), ("b", ("true", "–")), ("c", ("–", "null"))]


def test_a_damaged_config_is_left_out_of_the_comparison_and_named(desk, root):
    write_run(root, "one")
    broken = write_run(root, "two")
    (broken.path / "config.yaml").write_text("- 1\n")
    compared = desk.run(["one", "two"])["compare"]
    assert compared["runs"] == ["one"] and "config.yaml of run 'two' could not be read" in compared["problem"]


def test_damaged_checkpoints_are_told_apart_from_sound_ones(desk, root):
    run = write_run(root, "one")
    for step in (10, 20, 30):
        folder = run.checkpoints / f"step_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text(json.dumps({"step": step, "best_loss": step / 10}))
        (folder / "weights").write_bytes(b"w" * 100)
        entries = {name: {"size": (folder / name).stat().st_size, "crc32": 0} for name in ("trainer.json", "weights")}
        (folder / "manifest.json").write_text(json.dumps(entries))
    (run.checkpoints / "best.json").write_text(json.dumps({"name": "step_0000010", "loss": 1.0}))
    (run.checkpoints / "step_0000020" / "weights").write_bytes(b"w" * 60)
    (run.checkpoints / "step_0000030" / "manifest.json").write_text("{")
    newest, torn, best = desk.run(["one"])["checkpoints"]
    assert "manifest.json cannot be read" in newest["problem"]
    assert "weights has 60 bytes instead of 100" in torn["problem"]
    assert best["is_best"] and best["problem"] == "" and best["best_loss"] == 1.0


def test_csv_has_every_record_of_every_run(desk, root):
    write_run(root, "one", steps=20)
    run = write_run(root, "two", steps=20)
    online = {"ready": 3, "servers": [{"address": "a,b"}]}
    run.append_metrics({"step": 21, "batch": 21, "kind": "train", "online": online})
    rows = list(csv.DictReader(io.StringIO(desk.csv(["one", "two"]))))
    assert [row["kind"] for row in rows].count("train") == 41
    assert (rows[-1]["online.ready"], rows[-1]["online.servers/1.address"]) == ("3", "a,b")
    assert rows[0]["run"] == "one" and float(rows[0]["slot_accuracy/3"]) < 1


def test_the_exported_page_holds_everything_and_escapes_names(desk, root):
    write_run(root, "one", steps=20)
    write_run(root, "two", steps=20, optimizer={"lr": 0.002})
    page = desk.page(["one", "two"])
    assert page.count('class="plotly-graph-div"') >= 7
    assert "<td>optimizer.lr</td>" in page and "two, held out" in page
    assert "<script src" not in page and "<link" not in page


def test_a_run_deleted_between_two_questions_is_a_sentence(desk, root):
    run = write_run(root, "one")
    desk.curves(["one"])
    shutil.rmtree(run.path)
    with pytest.raises(UserError, match="There is no run 'one'"):
        desk.curves(["one"])


@pytest.mark.parametrize(
    "request_",
    [
        None,
        7,
        [],
        {},
        {"runs": 5, "span": None, "seen": ""},
        {"runs": [{}], "span": None, "seen": ""},
        {"runs": ["one"], "span": "abc", "seen": ""},
        {"runs": ["one"], "span": ["a", "b"], "seen": ""},
        {"runs": ["one"], "span": None},
    ],
)
def test_questions_that_are_none_are_answered_with_a_sentence(desk, root, request_):
    write_run(root, "one")

    @answered
    def read_curves(request):
        return desk.curves(request["runs"], request["span"], seen=request["seen"])

    assert json.loads(read_curves({"runs": ["one"], "span": None, "seen": ""}))["value"]["span"] == [1, 40]
    answer = json.loads(read_curves(request_))
    assert list(answer) == ["error"] and ": " in answer["error"]
