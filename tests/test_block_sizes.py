"""Block sizes are measured beside one another in one run, and their file reads back as what was measured."""

import json

import pytest
import torch

from dflash.cli.main import main
from dflash.data.conversations import Prompt
from dflash.decoding.engine import Engine
from dflash.errors import UserError
from dflash.evaluation.block_sizes import BenchmarkSettings, measure_block_sizes
from dflash.evaluation.block_sizes_file import read_block_sizes
from dflash.evaluation.prompt_sets import EXAMPLE_SET, read_sets
from dflash.evaluation.speedup import StepCost
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft

PROMPTS = [Prompt(name, [f"Prompt {name}"]) for name in "abc"]


@pytest.fixture(scope="module")
def engine(tiny_target) -> Engine:
    torch.manual_seed(1)
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=3, block_size=4)
    return Engine(tiny_target, DFlashDraft(config).eval())


def test_every_size_has_its_times_tau_and_paired_speedup(engine):
    report = measure_block_sizes(engine, PROMPTS, BenchmarkSettings(12), progress=False)
    assert [row["block_size"] for row in report["sizes"]] == [2, 3, 4]
    for row in report["sizes"]:
        assert len(row["histogram"]) == row["block_size"] and sum(row["histogram"]) == row["steps"]
        assert 1 <= row["tau"] <= row["block_size"]
        low, high = row["speedup_range"]
        assert 0 < low <= row["speedup"] <= high
        step = row["draft_ms"] + row["verify_ms"] + row["overhead_ms"]
        assert row["expected_speedup"] == pytest.approx(row["tau"] * report["target_ms"] / step)
    speeds = {row["block_size"]: row["speedup"] for row in report["sizes"]}
    assert report["best"] == max(speeds, key=speeds.get)
    assert json.loads(json.dumps(report)) == report


def test_the_order_turns_so_that_no_size_is_always_first(engine, monkeypatch):
    import dflash.evaluation.block_sizes as module

    order = []
    real = module._decode
    monkeypatch.setattr(module, "_decode", lambda e, ids, width, n: (order.append(width), real(e, ids, width, n))[1])
    measure_block_sizes(engine, PROMPTS, BenchmarkSettings(4, (2, 4)), progress=False)
    assert order == [1, 2, 4, 2, 4, 1, 4, 1, 2]


def test_sizes_the_draft_does_not_have_are_refused(engine):
    with pytest.raises(UserError, match="Block size 5.*2 to 4"):
        measure_block_sizes(engine, PROMPTS, BenchmarkSettings(4, (2, 5)), progress=False)
    with pytest.raises(UserError, match="no draft"):
        measure_block_sizes(Engine(engine.target), PROMPTS, progress=False)


def test_speedup_is_tau_over_what_a_step_costs():
    cost = StepCost(target=20, draft=4, verify=25, overhead=1)
    assert cost.break_even_tau == 1.5 and cost.speedup(3) == 2
    with pytest.raises(UserError, match="tau is 0.5"):
        cost.speedup(0.5)
    with pytest.raises(UserError, match="t_draft is -1"):
        StepCost(20, -1, 25, 1)
    with pytest.raises(UserError, match="more than 0"):
        StepCost(20, 0, 0, 0)


def test_the_command_writes_a_file_that_reads_back(engine, tiny_target_folder, tmp_path, capsys):
    engine.draft.save_pretrained(tmp_path / "draft")
    out = tmp_path / "sizes.json"
    arguments = ["benchmark", "--target", tiny_target_folder, "--draft", str(tmp_path / "draft"), "--device", "cpu"]
    arguments += ["--limit", "2", "--max-new-tokens", "6", "--threads", "1", "--dtype", "float32", "--json", str(out)]
    assert main([*arguments, "--block-sizes", "4,2"]) == 0
    read = read_block_sizes(out)
    assert (read.draft_name, [row.block_size for row in read.rows]) == ("draft", [2, 4])
    assert read.best.block_size == json.loads(out.read_text())["best"]
    assert f"block size {read.best.block_size}" in capsys.readouterr().out
    assert main([*arguments, "--block-sizes", "4,2"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--block-sizes", "two"]) == 2
    assert "2,4,8" in capsys.readouterr().err
    out.write_text('{"kind": "other", "format": 1}')
    with pytest.raises(UserError, match="no result of `dflash benchmark`"):
        read_block_sizes(out)


def test_the_example_prompts_have_categories_and_several_languages():
    prompts = read_sets([EXAMPLE_SET])
    assert len({prompt.category for prompt in prompts}) >= 4
    assert len({prompt.language for prompt in prompts}) >= 3
