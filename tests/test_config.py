"""Configurations: bad ones are refused in one sentence naming the field, and nothing heavy is imported for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from dflash.config import dump_config, load_config, parse_config
from dflash.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
BASE = Path(__file__).parent.parent / "configs" / "smollm2-135m-cpu.yaml"

WRONG = [
    (["run.max_steps=0"], "run.max_steps = 0"),
    (["run.max_stepz=5"], "run.max_stepz = 5 is no known setting: write run.max_steps"),
    (["optimizer.lr=1e-6"], "optimizer.min_lr = 1e-05 is above optimizer.lr = 1e-06"),
    (["optimizer.name=sgd"], "optimizer.name = 'sgd'"),
    (["schedule.warmup_ratio=0.9"], "exceed 1"),
    (["schedule.decay_style=step"], "schedule.decay_style = 'step'"),
    (["draft.block_size=1"], "draft.block_size = 1"),
    (["draft.target_layer_ids=[]"], "draft.target_layer_ids = []"),
    (["draft.target_layer_ids=[1,2]"], "draft.num_features = 5 contradicts the 2 ids"),
    (["blocks.gamma=-1"], "blocks.gamma = -1"),
    (["data.train=[]"], "data.train = []"),
    (["target.dtype=int8"], "target.dtype = 'int8'"),
    (["nonsense"], "not of the form section.key=value"),
    (["run.seed.deep=1"], "'seed' is a value, not a section"),
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_is_valid_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_layer_ids_alone_set_the_number_of_features_and_survive_a_round_trip(tmp_path):
    config = parse_config({"data": {"train": ["x.jsonl"]}, "draft": {"target_layer_ids": [1, 2, 3]}}, "test")
    assert config.draft.num_features == 3
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(("overrides", "sentence"), WRONG)
def test_a_wrong_setting_is_named_with_its_value(overrides, sentence):
    if overrides == ["run.seed.deep=1"]:
        overrides = ["run.seed=1", *overrides]
    with pytest.raises(UserError) as caught:
        load_config(BASE, overrides)
    assert sentence in str(caught.value)


def test_all_complaints_come_at_once():
    with pytest.raises(UserError) as caught:
        load_config(BASE, ["run.max_steps=0", "blocks.num_anchors=0"])
    assert "run.max_steps" in str(caught.value) and "blocks.num_anchors" in str(caught.value)


def test_overrides_read_scientific_notation_as_numbers():
    assert load_config(BASE, ["optimizer.lr=6e-4"]).optimizer.lr == 6e-4


def test_reading_a_config_does_not_import_torch():
    code = "import sys, dflash.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("size", "gamma"), [(8, 4.0), (10, 5.0), (16, 7.0)])
def test_decay_defaults_to_the_papers_values(size, gamma):
    assert load_config(BASE, [f"draft.block_size={size}", "blocks.gamma=null"]).gamma == gamma
