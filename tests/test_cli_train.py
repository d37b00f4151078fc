"""`dflash train`: from a config to a draft that `dflash generate` takes; dry runs and resumed runs."""

import json
from pathlib import Path

import pytest
import yaml

from dflash.cli.main import main
from dflash.errors import UserError


@pytest.fixture
def config_file(tiny_target_folder, tmp_path) -> Path:
    talk = tmp_path / "talk.jsonl"
    answer = {"role": "assistant", "content": "one two three four"}
    talks = [{"id": f"c{i}", "messages": [{"role": "user", "content": f"count {i}"}, answer]} for i in range(6)]
    talk.write_text("".join(json.dumps(one) + "\n" for one in talks))
    tree = {
        "target": {"name": tiny_target_folder, "dtype": "float32"},
        "draft": {"num_hidden_layers": 1, "num_features": 2, "block_size": 4},
        "data": {"train": [str(talk)], "validation_size": 1, "max_length": 128},
        "blocks": {"num_anchors": 4},
        "schedule": {"kind": "constant", "warmup_ratio": 0.0},
        "run": {"max_steps": 2, "batch_size": 1, "autocast": False},
        "checkpoint": {"every": 1},
        "metrics": {"validate_every": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_dry_run_prints_the_resolved_config_and_makes_nothing(config_file, tmp_path, capsys):
    arguments = ["train", str(config_file), "optimizer.lr=1e-3", "--dry-run", "--runs", str(tmp_path / "runs")]
    assert main(arguments) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["optimizer"]["lr"] == 1e-3
    assert resolved["run"]["max_steps"] == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [("run.device=abacus", "abacus"), ("run.device=meta", "meta"), ("draft.init=wram", "wram")],
)
def test_a_setting_this_machine_cannot_follow_leaves_no_run_folder(config_file, tmp_path, capsys, setting, said):
    assert main(["train", str(config_file), setting, "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert f"'{said}'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_training_ends_with_a_draft_that_generate_takes(config_file, tiny_target_folder, tmp_path, capsys):
    assert main(["train", str(config_file), "--runs", str(tmp_path), "--name", "first"]) == 0
    first_line = capsys.readouterr().out.splitlines()[0]
    draft = first_line.removeprefix("Draft: ")
    assert draft.startswith(str(tmp_path / "first"))
    machine = ["--dtype", "float32", "--device", "cpu", "--threads", "1", "--target", tiny_target_folder]
    options = ["--draft", draft, "--prompt", "count", "--max-new-tokens", "6", "--json"]
    assert main(["generate", *options, *machine]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


def test_a_finished_run_goes_on_when_resumed_with_more_steps(config_file, tmp_path, capsys):
    run = tmp_path / "runs" / "again"
    assert main(["train", str(config_file), "--runs", str(run.parent), "--name", run.name]) == 0
    assert main(["train", "--resume", str(run), "run.max_steps=3"]) == 0
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 3)


def test_starting_over_an_existing_run_is_refused(config_file, tmp_path, capsys):
    arguments = ["train", str(config_file), "--runs", str(tmp_path), "--name", "taken"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_stopped_run_says_how_to_go_on(config_file, tmp_path, monkeypatch, capsys):
    def stopped(config, run_dir, resume):
        run_dir.mkdir(parents=True)
        (run_dir / "status.json").write_text('{"state": "stopped"}')
        return run_dir / "draft"

    monkeypatch.setattr("dflash.training.trainer.train", stopped)
    assert main(["train", str(config_file), "--runs", str(tmp_path), "--name", "cut"]) == 130
    assert f"dflash train --resume {tmp_path / 'cut'}" in capsys.readouterr().out


def test_a_users_mistake_inside_training_is_a_sentence(config_file, tmp_path, monkeypatch, capsys):
    def refused(config, run_dir, resume):
        raise UserError("The disk is full.")

    monkeypatch.setattr("dflash.training.trainer.train", refused)
    assert main(["train", str(config_file), "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "dflash: The disk is full.\n"


def test_what_may_surprise_is_noted_before_the_run_starts(config_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dflash.cli.train._train", lambda *_args, **_options: 0)
    assert main(["train", str(config_file), "schedule.warmup_ratio=0.1", "--runs", str(tmp_path)]) == 0
    assert "dflash: note: schedule.warmup_ratio = 0.1 of 2 steps is less than one" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["train", str(config_file), "schedule.warmup_ratio=0.1", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_the_device_auto_is_taken_as_it_comes(config_file, tmp_path):
    assert main(["train", str(config_file), "run.device=auto", "--runs", str(tmp_path), "--name", "auto"]) == 0
    assert json.loads((tmp_path / "auto" / "status.json").read_text())["state"] == "finished"


def test_a_checkpoint_takes_the_disk_that_the_dry_run_announced(config_file, tmp_path, capsys):
    arguments = ["train", str(config_file), "run.max_steps=1", "optimizer.ema_decay=0.9", "--runs", str(tmp_path)]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    announced = json.loads(capsys.readouterr().out)["derived"]["checkpoint_bytes"]
    assert main([*arguments, "--name", "sized"]) == 0
    (checkpoint,) = (tmp_path / "sized" / "checkpoints").glob("step_*")
    taken = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    # Beside the weights there are names, checksums and the state of the random generator, which do not grow with them.
    assert announced < taken < announced + 40_000


def test_only_the_first_rank_tells_how_a_run_ended(config_file, tmp_path, monkeypatch, capsys):
    """Another rank may have named the run folder a second later, and then knows nothing of it."""
    monkeypatch.setattr("dflash.training.trainer.train", lambda _config, run_dir, resume: run_dir / "draft")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["train", str(config_file), "run.batch_size=2", "--runs", str(tmp_path), "--name", "elsewhere"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""


def test_a_run_that_is_named_without_its_folder_is_found_in_the_default_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "mine"]) == 2
    assert "give the folder of a run, such as runs/NAME." in capsys.readouterr().err
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").touch()
    assert main(["train", "--resume", "mine"]) == 2
    assert "'mine' is no run folder (it holds no config.yaml): give runs/mine." in capsys.readouterr().err
