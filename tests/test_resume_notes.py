"""Resuming with other settings: what that does to the learning rate is said, in the dry run too."""

import json
from pathlib import Path

import pytest
import yaml

from dflash.cli.main import main
from dflash.config import dump_config, load_config
from dflash.training.resume_notes import resume_notes


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run of 100 steps whose decay began at step 81, as it lies on disk when all of it is done."""
    tree = {
        "target": {"name": "smollm2-135m"},
        "data": {"train": [str(tmp_path / "talk.jsonl")], "validation_size": 1, "max_length": 64},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-5},
        "run": {"max_steps": 100},
    }
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": []}) + "\n" + json.dumps({"messages": []}) + "\n")
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(tree))
    run = tmp_path / "run"
    (run / "checkpoints/step_0000100").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(load_config(path)))
    return run


def said(run_dir, *overrides) -> list[str]:
    return list(resume_notes(run_dir, load_config(run_dir / "config.yaml", overrides), None))


def test_a_finished_run_that_is_made_longer_says_how_its_schedule_stretches(run_dir):
    (note,) = said(run_dir, "run.max_steps=200")
    assert note == (
        "The schedule was for 100 steps with the decay from step 81 on and is now for 200 with the decay from step 161 "
        "on: step 101, with which the run goes on, has learning rate 0.001; it had come down to 1e-05."
    )


def test_a_run_made_longer_before_its_decay_says_it_too(run_dir):
    (run_dir / "checkpoints/step_0000100").rename(run_dir / "checkpoints/step_0000050")
    (note,) = said(run_dir, "run.max_steps=60")
    assert "is now for 60 with the decay from step 49 on" in note and "it would have had 0.001." in note


def test_another_peak_is_noticed_and_the_same_settings_say_nothing(run_dir):
    (run_dir / "checkpoints/step_0000100").rename(run_dir / "checkpoints/step_0000050")
    (note,) = said(run_dir, "optimizer.lr=2e-3")
    assert "step 51, with which the run goes on, has learning rate 0.002; it would have had 0.001" in note
    assert said(run_dir) == said(run_dir, "metrics.log_every=7") == []


def test_a_run_that_has_nothing_left_to_do_or_nothing_done_says_nothing(run_dir):
    assert said(run_dir) == []
    (run_dir / "checkpoints/step_0000100").rmdir()
    assert said(run_dir, "run.max_steps=200") == []


def test_the_dry_run_of_a_resumed_run_prints_it(run_dir, capsys):
    assert main(["train", "--resume", str(run_dir), "run.max_steps=200", "--dry-run"]) == 0
    assert "# Note: The schedule was for 100 steps" in capsys.readouterr().out
