"""`dflash train --dry-run`: what a config amounts to, for every config of the repository, without starting anything."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dflash.cli.main import main
from dflash.config import load_config
from dflash.devices import nvidia_driver_is_here
from dflash.model.draft import DFlashDraft
from dflash.model.draft_types import DRAFT_TYPES, draft_class

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def one_process(monkeypatch, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    # Checkpoints of an 8B target's draft take 55 GiB, which the machine under test may not have free.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr("dflash.training.readiness.hub_is_reachable", lambda: True)


@pytest.fixture
def config_file(tmp_path) -> Path:
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"messages": []}\n\n' * 10)
    tree = {
        "target": {"name": "Qwen/Qwen3-8B"},
        "data": {"train": [str(talk)], "validation_size": 2, "max_length": 64},
        "run": {"max_steps": 100},
    }
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def dry_run(capsys, *arguments) -> dict:
    assert main(["train", *map(str, arguments), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def planned_ranks(path: Path) -> list[str]:
    """The ranks that a config's opening comment says it is for."""
    found = re.search(r"--dry-run( --world-size \d+)?`", path.read_text())
    return (found[1] or "").split() if found else []


@pytest.mark.parametrize("as_it_says", [True, False], ids=["with its ranks", "plain"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_repository_passes(path, as_it_says, capsys):
    plan = dry_run(capsys, path, *(planned_ranks(path) if as_it_says else ()))
    assert plan["derived"]["steps"] > 0
    assert plan["derived"]["draft_parameters"] > 1e6
    assert plan["derived"]["memory"] and plan["derived"]["rates"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_says_what_was_run(path):
    comment = "".join(line for line in path.read_text().splitlines(True)[:12] if line.startswith("#"))
    assert "run" in comment
    if load_config(path).run.device != "cpu":
        assert "Nothing of it has been run" in comment


def test_the_recipes_for_eight_gpus_fit_into_them(capsys):
    for name, gigabytes in (("qwen3-8b-8xh100", 80), ("qwen3-8b-8xb200", 180), ("qwen3-4b-1gpu", 40)):
        path = ROOT / "configs" / f"{name}.yaml"
        assert dry_run(capsys, path, *planned_ranks(path))["derived"]["device_bytes"] < 0.9 * gigabytes * 1e9


def test_the_reproduction_recipes_are_the_recipe_of_record():
    """COMPATIBILITY.md, "Training recipe of record"."""
    for name in ("qwen3-8b-8xh100", "qwen3-8b-8xb200"):
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        assert (config.optimizer.name, config.optimizer.lr, config.optimizer.min_lr) == ("adamw", 6e-4, 6e-5)
        assert (config.optimizer.weight_decay, config.optimizer.clip) == (0.01, 1.0)
        assert config.schedule.model_dump() == {
            "kind": "wsd", "warmup_ratio": 0.04, "decay_ratio": 0.2, "decay_style": "cosine",
        }  # fmt: skip
        assert (config.draft.block_size, config.draft.num_hidden_layers, config.draft.num_features) == (16, 5, 5)
        assert (config.data.max_length, config.blocks.num_anchors, config.gamma) == (2048, 512, 7)
        assert (config.data.limit, config.run.epochs, config.draft.mask_token_id) == (800_000, 3, 151669)


def test_the_printed_plan_is_the_resolved_config_with_comments(config_file, tmp_path, capsys):
    assert main(["train", str(config_file), "optimizer.lr=1e-3", "--dry-run", "--runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(out)
    assert load_config(tmp_path / "again.yaml") == load_config(config_file, ["optimizer.lr=1e-3"])
    for part in ("Step: 8 row(s)", "Steps: 100", "51,200 tokens", "0.001 at end of warm-up (4)", "parameters",
                 "Disk:", "Memory per rank", "target weights", "logits chunk"):  # fmt: skip
        assert part in out
    assert not (tmp_path / "runs").exists()


def test_json_holds_config_and_derived_numbers(config_file, capsys):
    plan = dry_run(capsys, config_file, "run.max_steps=null", "run.epochs=4", "--world-size", 2)
    derived = plan["derived"]
    assert plan["config"]["run"]["epochs"] == 4
    assert (derived["world_size"], derived["accumulation"]) == (2, 4)
    assert (derived["conversations"], derived["steps"], derived["rows"]) == (8, 4, 32)
    assert derived["device_bytes"] == sum(part["bytes"] for part in derived["memory"])
    assert plan["notes"] and plan["not_ready"] == []


@pytest.mark.parametrize("order", [["--world-size", "2", "CONFIG", "run.seed=5"], ["CONFIG", "--gpus", "2", "run.seed=5"],
                                   ["run.seed=5", "--gpus", "2", "CONFIG"]])  # fmt: skip
def test_settings_may_stand_before_and_after_options(config_file, capsys, order):
    plan = dry_run(capsys, *(config_file if word == "CONFIG" else word for word in order))
    assert (plan["config"]["run"]["seed"], plan["derived"]["world_size"]) == (5, 2)


def test_ranks_come_from_torchrun_unless_given(config_file, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert dry_run(capsys, config_file)["derived"]["world_size"] == 4
    assert dry_run(capsys, config_file, "--gpus", 8)["derived"]["world_size"] == 8
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert main(["train", str(config_file), "--dry-run"]) == 2
    assert "WORLD_SIZE = 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--world-size", "2"], ["--gpus", "2"], ["--json"]])
def test_planning_options_without_a_dry_run_are_refused(config_file, capsys, option):
    assert main(["train", str(config_file), *option]) == 2
    error = capsys.readouterr().err
    assert option[0] in error and " only belongs to a dry run" in error


def test_an_unknown_target_is_planned_for_as_far_as_possible(config_file, capsys):
    plan = dry_run(capsys, config_file, "target.name=someone/else")
    assert plan["derived"]["steps"] == 100 and plan["derived"]["memory"] == []
    assert any("Nothing is known here about target 'someone/else'" in note for note in plan["notes"])


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["draft.target_layer_ids=[1,35]"], "SGLang cannot capture"),
        (["data.train=[someone/talk]"], "looked up on the Hugging Face hub"),
        (["run.max_steps=10"], "no warm-up"),
        (["run.max_steps=2"], "no decay"),
        (["metrics.decode_every=101", "metrics.decode_count=1"], "tau is never decoded"),
    ],
)
def test_what_may_surprise_is_noted_and_not_refused(config_file, capsys, overrides, note):
    assert any(note in said for said in dry_run(capsys, config_file, *overrides)["notes"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.kind=cosine"],
        ["schedule.kind=constant", "optimizer.lr=1e-6"],
        ["data.packing=true"],
        ["run.max_steps=null", "run.epochs=2"],
        ["metrics.decode_every=9", "metrics.decode_count=1", "metrics.decode_tokens=5"],
        ["draft.target_layer_ids=[1,5,9]"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_run_resumes_with_the_config_it_wrote_whatever_its_mode(config_file, tmp_path, capsys, overrides):
    """A written config spells out every default; none of them may count as an option that does nothing."""
    from dflash.training.run_folder import RunFolder

    config = load_config(config_file, overrides)
    RunFolder.create(tmp_path / "run", config)
    assert main(["train", "--resume", str(tmp_path / "run"), "--dry-run"]) == 0
    assert load_config(tmp_path / "run" / "config.yaml") == config
    assert main(["train", "--resume", str(tmp_path / "run"), "run.seed=1", "--dry-run"]) == 0


def test_a_target_with_experts_is_planned_for_with_a_warning(config_file, tmp_path, capsys):
    sizes = {"num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 500, "num_experts": 4}
    (tmp_path / "experts").mkdir()
    (tmp_path / "experts" / "config.json").write_text(json.dumps({"text_config": sizes}))
    plan = dry_run(capsys, config_file, f"target.name={tmp_path / 'experts'}", "draft.intermediate_size=128")
    assert plan["derived"]["draft_parameters"] and any("has experts" in note for note in plan["notes"])


def test_a_run_that_had_several_ranks_may_go_on_with_one(config_file, tmp_path, monkeypatch, capsys):
    from dflash.training.run_folder import RunFolder

    RunFolder.create(tmp_path / "run", load_config(config_file, ["parallel.strategy=replicate"]))
    assert main(["train", "--resume", str(tmp_path / "run"), "--dry-run"]) == 0


def test_null_gives_a_setting_of_the_file_its_default_back(config_file, capsys):
    assert dry_run(capsys, config_file, "data.max_length=null")["config"]["data"]["max_length"] == 512


def test_draft_types_are_dispatched_and_unknown_ones_refused():
    assert draft_class("dflash") is DFlashDraft
    with pytest.raises(TypeError, match="'dspark' is not supported: choose one of dflash"):
        draft_class("dspark")
    assert DRAFT_TYPES == ("dflash",)


def test_planning_modules_do_not_import_torch():
    modules = "config target_facts training.estimate training.preflight training.readiness cli.main cli.dry_run"
    code = f"import sys, {', '.join(f'dflash.{m}' for m in modules.split())}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def not_ready(capsys, *arguments) -> list[str]:
    return dry_run(capsys, *arguments)["not_ready"]


def test_a_taken_run_folder_and_one_that_cannot_be_made_are_known_before_the_start(config_file, tmp_path, capsys):
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    assert not_ready(capsys, config_file, "--runs", tmp_path / "runs", "--name", "taken") == []
    (tmp_path / "runs" / "taken" / "metrics.jsonl").write_text("{}\n")
    (found,) = not_ready(capsys, config_file, "--runs", tmp_path / "runs", "--name", "taken")
    assert "already holds a run" in found
    (found,) = not_ready(capsys, config_file, "--runs", config_file, "--name", "new")
    assert "cannot be made" in found
    assert main(["train", str(config_file), "--runs", str(tmp_path / "runs"), "--name", "taken"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_feature_cache_of_another_length_or_dtype_is_known_before_the_start(config_file, tmp_path, capsys):
    cache = tmp_path / "cache"
    cache.mkdir()
    overrides = ("features.source=cache", f"features.cache={cache}")
    (found,) = not_ready(capsys, config_file, *overrides)
    assert "holds no cache.json" in found
    identity = {"dtype": "bfloat16", "max_length": 64}
    (cache / "cache.json").write_text(json.dumps({"identity": identity}))
    assert not_ready(capsys, config_file, *overrides) == []
    (cache / "cache.json").write_text(json.dumps({"identity": identity | {"max_length": 96}}))
    (found,) = not_ready(capsys, config_file, *overrides)
    assert "max_length 96 instead of 64" in found
    (cache / "cache.json").write_text("{")
    (found,) = not_ready(capsys, config_file, *overrides)
    assert "cannot be read" in found


@pytest.mark.skipif(nvidia_driver_is_here(), reason="an NVIDIA driver is loaded here")
def test_a_gpu_that_is_not_here_is_said_by_the_dry_run(config_file, capsys):
    (found,) = not_ready(capsys, config_file, "run.device=cuda")
    assert "run.device = 'cuda' needs an NVIDIA driver" in found


def test_a_home_folder_is_expanded_once_for_every_reader(config_file, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(config_file, ["data.train=[~/talk.jsonl]", "draft.init=~/draft"])
    assert config.data.train == [str(tmp_path / "talk.jsonl")] and config.draft.init == str(tmp_path / "draft")


def test_ranks_cannot_be_assumed_of_a_run_that_starts_its_own(capsys):
    path = ROOT / "configs" / "qwen3-8b-8xh100-online.yaml"
    assert main(["train", str(path), "--dry-run", "--gpus", "8"]) == 2
    assert "online.trainers" in capsys.readouterr().err
