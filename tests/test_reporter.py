"""What a run says of itself: heartbeat, log, metrics and the silence of other ranks."""

import json
import re
import time

import pytest
import torch

from dflash.training import reporter as module
from dflash.training.reporter import Reporter, peak_memory_gib
from dflash.training.run_folder import RunFolder
from dflash.training.trainer import train
from dflash.training.world import World
from tiny_runs import ALONE, tiny_config, write_conversations


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    talk = write_conversations(tmp_path / "talk.jsonl")
    return lambda **sections: tiny_config(tiny_target_folder, talk, **sections)


def test_the_heart_beats_while_the_trainer_is_busy_with_something_else(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_HEARTBEAT_SECONDS", 0.05)
    settings = config()
    run = RunFolder.create(tmp_path / "run", settings)
    with Reporter(run, settings, ALONE, progress=False) as reporter:
        reporter.begin(2, 6)
        beats = set()
        deadline = time.monotonic() + 10
        while len(beats) < 3 and time.monotonic() < deadline:
            beats.add(json.loads((run.path / "status.json").read_text())["heartbeat"])
            time.sleep(0.02)
    assert len(beats) >= 3
    status = json.loads((run.path / "status.json").read_text())
    assert (status["state"], status["step"], status["max_steps"]) == ("running", 2, 6)


def test_other_ranks_write_nothing(config, tmp_path):
    settings = config()
    run = RunFolder.create(tmp_path / "run", settings)
    before = sorted(run.path.rglob("*"))
    with Reporter(run, settings, World(1, 2, torch.device("cpu")), progress=True) as reporter:
        reporter.begin(0, 6)
        reporter.reach(1, 6)
        reporter.metrics({"step": 1, "batch": 1, "kind": "train"})
        reporter.note("hello")
        reporter.show(loss="1")
    assert sorted(run.path.rglob("*")) == before


def test_records_and_log_tell_how_the_run_went(config, tmp_path, tiny_target_folder):
    train(config(), tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert all(line["tokens_per_s"] > 0 and 0 <= line["data_wait_percent"] <= 100 for line in steps)
    assert all(0.01 < line["memory_gib"] < 1000 for line in steps)
    log = (tmp_path / "run/log.txt").read_text()
    rate = steps[0]["lr"]
    assert f"Step 1 of 6: loss {steps[0]['loss']:.4f}, tau~{steps[0]['tau_estimate']:.3f}, lr {rate:.3g}, " in log
    assert len(re.findall(r"Step \d of 6: .* [\d.e+]+ rows/s, 0:00:\d\d left\.", log)) == 6
    for said in ("Training from step 0 to 6 on 1 rank(s) of cpu: 10 rows, 2 held out.", "Step 3: validation loss",
                 "Checkpoint step_0000006 is complete"):  # fmt: skip
        assert said in log


def test_peak_memory_is_in_gib():
    held = torch.ones(64, 2**20)  # a quarter of a GiB
    assert 0.25 < peak_memory_gib(torch.device("cpu")) < 64
    assert held.numel() == 2**26
