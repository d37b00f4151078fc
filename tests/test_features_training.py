"""Training from the cache: the curve and the weights of training with the target, bit for bit, without its layers."""

import textwrap

import pytest
import torch
from tiny_runs import metrics, open_trainer, tiny_config, torchrun, weights, write_conversations

from dflash.data.load import load_conversations
from dflash.errors import UserError
from dflash.features.capture import capture
from dflash.training.trainer import train

LAYER_IDS = [1, 2, 3]  # what three features of six layers take by default


@pytest.fixture
def talk(tmp_path) -> str:
    return write_conversations(tmp_path / "talk.jsonl")


def cached_config(config, target, out, **sections):
    """`config` with its features captured into `out`."""
    items = load_conversations(config.data, target.tokenizer).rendered
    capture(config, target, LAYER_IDS, items, out, shard_bytes=100_000, progress=False)
    features = {"source": "cache", "cache": str(out), **sections.pop("features", {})}
    return tiny_config(config.target.name, config.data.train[0], features=features, **sections)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_curve_and_the_weights_are_those_of_training_with_the_target(
    tiny_target, tiny_target_folder, talk, tmp_path, packing, prefetch
):
    sections = {"data": {"packing": packing, "max_length": 160}, "run": {"micro_batch_size": 2}}
    config = tiny_config(tiny_target_folder, talk, **sections)
    cached = cached_config(config, tiny_target, tmp_path / "cache", features={"prefetch": prefetch}, **sections)
    with_target = train(config, tmp_path / "with-target", progress=False)
    from_cache = train(cached, tmp_path / "from-cache", progress=False)
    assert metrics(tmp_path / "from-cache") == metrics(tmp_path / "with-target")
    ours, theirs = weights(from_cache), weights(with_target)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_training_from_the_cache_holds_no_layers_of_the_target(tiny_target, tiny_target_folder, talk, tmp_path):
    config = cached_config(tiny_config(tiny_target_folder, talk), tiny_target, tmp_path / "cache")
    with open_trainer(config, tmp_path / "run") as trainer, pytest.raises(RuntimeError, match="without its layers"):
        trainer.target.features(torch.arange(5)[None], LAYER_IDS)


WARM = textwrap.dedent("""
    import sys
    from pathlib import Path
    from dflash.config import TrainConfig
    from dflash.training import trainer as module
    from dflash.training.world import joined
    here = Path(sys.argv[1])
    load = module.TargetModel.load
    def noting(*names, **options):
        (here / f"whole-on-{world.rank}").write_text(str(options["layers"]))
        return load(*names, **options)
    module.TargetModel.load = noting
    config = TrainConfig.model_validate_json((here / "config.json").read_text())
    with joined(config) as world:
        module.train(config, here / "two", progress=False)
""")


@pytest.mark.slow
def test_of_several_ranks_the_first_alone_holds_the_target_that_warms_the_draft_and_decodes(
    tiny_target, tiny_target_folder, talk, tmp_path
):
    sections = {
        "draft": {"init": "warm"},
        "metrics": {"decode_every": 3, "decode_count": 1, "decode_tokens": 6},
        "run": {"max_steps": 3},
    }
    config = cached_config(tiny_config(tiny_target_folder, talk), tiny_target, tmp_path / "cache", **sections)
    (tmp_path / "config.json").write_text(config.model_dump_json(exclude_unset=True))
    train(config, tmp_path / "one", progress=False)
    result = torchrun(2, WARM, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [(tmp_path / f"whole-on-{rank}").read_text() for rank in (0, 1)] == ["True", "False"]
    one, two = ([line["loss"] for line in metrics(tmp_path / name, "train")] for name in ("one", "two"))
    assert len(two) == 3 and two == pytest.approx(one, rel=1e-5)
    assert [line["decoded_tau"] >= 1 for line in metrics(tmp_path / "two", "decode")] == [True]


def test_conversations_that_came_after_the_capture_are_named_before_the_first_step(
    tiny_target, tiny_target_folder, talk, tmp_path
):
    config = cached_config(tiny_config(tiny_target_folder, talk), tiny_target, tmp_path / "cache")
    with open(talk, "a") as file:
        file.write(open(talk).readline().replace('"c0"', '"new"').replace("one", "two"))
    with pytest.raises(UserError, match="lacks conversation 'new' of this run: `dflash capture CONFIG --out"):
        train(config, tmp_path / "run", progress=False)
