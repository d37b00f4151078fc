"""Metrics adapters: what reaches a tracker, what is refused before a run, and that a broken one never stops a run."""

import subprocess
import sys
import textwrap
import time

import pytest

from dflash.config import parse_config
from dflash.errors import UserError
from dflash.training.logged_once import LoggedOnce
from dflash.training.metrics import Sinks, check_adapters, open_sinks, scalars

KEY = "0123456789abcdef0123456789abcdef01234567"
RECORD = {
    "step": 3,
    "batch": 4,
    "kind": "train",
    "loss": 2.5,
    "skipped": False,
    "slot_accuracy": [0.5, 0.25],
    "conversations": ["a", "b"],
    "decoded_tau": None,
}


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


def config(*adapters):
    return parse_config({"data": {"train": ["talk.jsonl"]}, "metrics": {"adapters": list(adapters)}}, "test")


class Recording:
    def __init__(self, *, fail_from=99):
        self.steps, self.closed, self.fail_from = [], False, fail_from

    def log(self, record, step):
        if step >= self.fail_from:
            raise RuntimeError(f"the tracker is gone, key {KEY}")
        self.steps.append(step)

    def close(self):
        self.closed = True


def test_every_number_becomes_a_scalar_and_lists_one_per_slot():
    assert dict(scalars(RECORD)) == {
        "train/loss": 2.5,
        "train/skipped": 0.0,
        "train/slot_accuracy/1": 0.5,
        "train/slot_accuracy/2": 0.25,
    }
    assert dict(scalars({"kind": "validation", "loss": 1})) == {"validation/loss": 1.0}


def test_nothing_is_imported_or_written_without_adapters(tmp_path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from dflash.config import parse_config
        from dflash.training.metrics import open_sinks
        sinks = open_sinks(parse_config({"data": {"train": ["x"]}}, "test"), Path(sys.argv[1]))
        sinks.log({"loss": 1.0}, 1)
        sinks.close()
        assert not {"torch", "tensorboard", "wandb", "trackio"} & set(sys.modules)
    """)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert not list(tmp_path.iterdir())


def test_tensorboard_event_files_hold_what_was_logged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    said = []
    sinks = open_sinks(config("tensorboard"), tmp_path, say=said.append)
    for step in (1, 2, 3):
        sinks.log(RECORD | {"step": step, "loss": 3.0 - step}, step)
    sinks.close()
    resumed = open_sinks(config("tensorboard"), tmp_path, after_step=2, say=said.append)
    resumed.log(RECORD | {"loss": 9.0}, 3)
    resumed.close()

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0), (3, 9.0)]
    assert events.Scalars("train/slot_accuracy/2")[0].value == 0.25
    assert "train/conversations/1" not in events.Tags()["scalars"]
    assert len(said) == 2 and str(tmp_path / "tensorboard") in said[0]


def test_wandb_logs_offline_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said = []
    sinks = open_sinks(config("wandb"), tmp_path, say=said.append)
    sinks.log(RECORD, 3)
    sinks.close()
    assert "offline" in said[0] and len(said) == 1
    (data,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process writes the file a moment later, at the latest when we exit
    while b"train/slot_accuracy/1" not in data.read_bytes():
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.05)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()], "a key was written"


def test_wandb_out_of_reach_goes_offline_instead_of_hanging(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = []
    open_sinks(config("wandb"), tmp_path, say=said.append).close()
    assert "offline" in said[0] and "wandb sync" in said[0]


def test_trackio_logs_into_its_local_database(tmp_path):
    pytest.importorskip("trackio")
    # In a process of its own: trackio reads TRACKIO_DIR when it is imported.
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        here = Path(sys.argv[1])
        os.environ["TRACKIO_DIR"] = str(here / "database")
        from dflash.config import parse_config
        from dflash.training.metrics import open_sinks
        config = parse_config(
            {"data": {"train": ["x"]}, "metrics": {"adapters": ["trackio"], "project": "p"}}, "test")
        (here / "run-7").mkdir()
        for after, step in ((0, 3), (3, 4)):
            sinks = open_sinks(config, here / "run-7", after_step=after, say=lambda text: None)
            sinks.log({"kind": "train", "loss": 2.5, "slot_accuracy": [0.5, 0.25]}, step)
            sinks.close()
        from trackio.sqlite_storage import SQLiteStorage
        logs = SQLiteStorage.get_logs("p", "run-7")
        assert [line["step"] for line in logs] == [3, 4], logs
        assert logs[0]["train/loss"] == 2.5 and logs[0]["train/slot_accuracy/2"] == 0.25, logs
        assert len(SQLiteStorage.get_runs("p")) == 1, "a resumed run goes on with the same one"
    """)
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stdout, "stdout belongs to the command"


class FakeWandb:
    """The service behind W&B: runs by id, each with every line that it was ever sent."""

    def __init__(self):
        self.runs, self.resumed_as = {}, []

    def init(self, *, id, resume, **_options):
        self.resumed_as.append(resume)
        lines = self.runs.setdefault(id, [])
        if resume is None:
            lines.clear()  # as W&B does for an id that is started over
        return FakeRun(lines)

    class Settings:
        base_url = "http://127.0.0.1:9"

        def __init__(self, **_):
            pass


class FakeRun:
    url = "somewhere"

    def __init__(self, lines):
        self._lines = lines

    def define_metric(self, *_names, **_options):
        pass

    def log(self, values, step=None):
        self._lines.append({"step": step, **values})

    def finish(self):
        pass


class FakeTrackio:
    def __init__(self):
        self.runs = {}

    def init(self, *, name, resume, **_options):
        lines = self.runs.setdefault(name, [])
        if resume == "never":
            lines.clear()
        return FakeRun(lines)

    def finish(self):
        pass


def sent(step, kind="train"):
    return {"step": step, "batch": step, "kind": kind, "loss": float(step)}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_that_was_killed_tells_its_tracker_no_step_twice(tmp_path, monkeypatch, name):
    fake = {"wandb": FakeWandb, "trackio": FakeTrackio}[name]()
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")

    def sitting(after, records):
        sinks = open_sinks(config(name), tmp_path, after_step=after, say=lambda _: None)
        for record in records:
            sinks.log(record, record["step"])
        # No close: killed.

    sitting(0, [sent(step) for step in (1, 2, 3, 4)] + [sent(4, "validation")])
    sitting(2, [sent(3), sent(4), sent(4, "validation"), sent(4, "decode"), sent(5)])
    sitting(2, [sent(3), sent(4), sent(4, "validation")])
    sitting(4, [sent(5), sent(6)])
    (lines,) = fake.runs.values()
    kinds = [(line["step"], *(key for key in line if key != "step")) for line in lines]
    assert kinds == [(1, "train/loss"), (2, "train/loss"), (3, "train/loss"), (4, "train/loss"),
                     (4, "validation/loss"), (4, "decode/loss"), (5, "train/loss"), (6, "train/loss")]  # fmt: skip
    if name == "wandb":
        assert fake.resumed_as == [None, "allow", "allow", "allow"] and len(fake.runs) == 1

    sitting(0, [sent(1)])  # killed before its first checkpoint: the tracker's run begins anew, too
    (lines,) = fake.runs.values()
    assert [line["step"] for line in lines] == [1]


def test_what_a_tracker_failed_to_take_is_told_again(tmp_path):
    once = LoggedOnce(Recording(fail_from=3), tmp_path / "cursor.json", afresh=True)
    once.log(sent(2), 2)
    with pytest.raises(RuntimeError):
        once.log(sent(3), 3)
    good = Recording()
    again = LoggedOnce(good, tmp_path / "cursor.json", afresh=False)
    for step in (2, 3):
        again.log(sent(step), step)
    assert good.steps == [3]


def test_a_missing_package_is_one_sentence_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "trackio"):
        with pytest.raises(UserError, match=f"{name!r}, which is not installed: run `pip install {name}`"):
            check_adapters(config(name).metrics)


def test_wandb_without_a_key_or_switched_off_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="WANDB_API_KEY is not set"):
        check_adapters(config("wandb").metrics)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(UserError, match="WANDB_MODE is 'disabled'"):
        check_adapters(config("wandb").metrics)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_adapters(config("wandb").metrics)


@pytest.mark.parametrize("name", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_a_remote_trackio_out_of_reach_is_refused_without_printing_its_token(tmp_path, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("dflash.hub.hub_is_reachable", lambda: False)
    monkeypatch.setenv(name, {"TRACKIO_SPACE_ID": "me/space"}.get(name, "http://127.0.0.1:9/?write_token=hidden"))
    with pytest.raises(UserError, match=f"{name} names.*cannot be reached") as caught:
        open_sinks(config("trackio"), tmp_path)
    assert "hidden" not in str(caught.value)


def test_a_tracker_that_cannot_start_is_an_error_and_closes_those_already_open(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    first = Recording()

    class Broken:
        @staticmethod
        def init(**_):
            raise RuntimeError(f"401 for key {KEY}\nand a long story")

        class Settings:
            base_url = "http://127.0.0.1:9"

            def __init__(self, **_):
                pass

    monkeypatch.setitem(sys.modules, "wandb", Broken)
    monkeypatch.setitem(sys.modules["dflash.training.metrics"]._ADAPTERS, "tensorboard", lambda *_: first)
    with pytest.raises(UserError, match=r"W&B could not be started \(401 for key \*\*\*\)") as caught:
        open_sinks(config("tensorboard", "wandb"), tmp_path)
    assert first.closed and KEY not in str(caught.value)


def test_a_tracker_that_fails_during_training_is_reported_once_and_the_others_go_on(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said, good, bad = [], Recording(), Recording(fail_from=2)
    sinks = Sinks(said.append)
    sinks.add("wandb", bad)
    sinks.add("tensorboard", good)
    for step in range(1, 5):
        sinks.log({"loss": 1.0}, step)
    assert good.steps == [1, 2, 3, 4] and bad.steps == [1]
    assert said == ["wandb failed at step 2 and is switched off (the tracker is gone, key ***); training goes on."]
    assert sinks.names == ["tensorboard"]
    sinks.close()
    assert good.closed
