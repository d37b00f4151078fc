"""Estimates: derived numbers agree with the real draft, the real schedule and what a real forward keeps."""

import pytest
import torch

from dflash.blocks.attention import ATTENTION_FORMS
from dflash.blocks.plan import plan_blocks
from dflash.config import TrainConfig, parse_config
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.objectives.head import CHUNK_ROWS
from dflash.target_facts import TargetFacts, target_facts
from dflash.training.draft_size import draft_shape
from dflash.training.estimate import checkpoint_bytes, estimate, steps_of
from dflash.training.memory import LOGITS_CHUNK_ROWS, activation_bytes, memory_per_rank, working_copy_bytes
from dflash.training.optimizer import build_optimizers
from dflash.training.order import total_steps
from dflash.training.schedule import corners, learning_rate

FACTS = TargetFacts("test", 12, 320, 704, 6, 2, 48, 1000, 4096, tied=False)


def make(**sections) -> TrainConfig:
    base = {"target": {"name": "org/test"}, "data": {"train": ["x.jsonl"], "max_length": 200}}
    return parse_config({**base, **sections}, "test")


def build(config: TrainConfig) -> DFlashDraft:
    shape = draft_shape(config, FACTS)
    return DFlashDraft(
        DFlashConfig(
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab_size=FACTS.vocab_size,
            block_size=shape.block_size,
            mask_token_id=1,
            target_layer_ids=list(range(shape.features)),
            num_target_layers=FACTS.depth,
        )
    )


def test_the_number_of_parameters_is_exact():
    config = make(draft={"num_hidden_layers": 3, "num_features": 4, "intermediate_size": 96})
    shape = draft_shape(config, FACTS)
    draft = build(config)
    assert shape.parameters == sum(p.numel() for p in draft.parameters())
    assert shape.matrices == sum(p.numel() for p in draft.parameters() if p.ndim == 2)


def test_the_published_targets_have_the_sizes_their_names_promise():
    assert target_facts("Qwen/Qwen3-8B").parameters == 8_190_735_360
    assert target_facts("Qwen/Qwen3-4B").parameters == 4_022_468_096
    assert target_facts("smollm2-135m").parameters == 134_515_008


def test_facts_of_a_folder_agree_with_the_loaded_target(tiny_target, tiny_target_folder):
    facts = target_facts(tiny_target_folder)
    assert facts.parameters == sum(p.numel() for p in tiny_target.model.parameters())
    assert (facts.depth, facts.hidden_size, facts.vocab_size) == (6, 32, 264)
    assert ("eos", tiny_target.tokenizer.eos_token_id) in facts.special_ids


def test_a_cached_hub_target_is_found_without_the_network(tmp_path, monkeypatch, tiny_target_folder):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert target_facts("someone/tiny") is None
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "c0ffee").symlink_to(tiny_target_folder)
    assert target_facts("someone/tiny").depth == 6
    assert target_facts("someone/tiny", "c0ffee").depth == 6
    assert target_facts("someone/tiny", "other") is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_and_checkpoint_have_the_estimated_size(optimizer):
    config = make(draft={"num_hidden_layers": 2, "num_features": 2}, optimizer={"name": optimizer})
    shape, draft = draft_shape(config, FACTS), build(config)
    for parameter in draft.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = 0
    for part in build_optimizers(draft, config.optimizer):
        part.step()
        tensors = [t for values in part.state.values() for t in values.values() if torch.is_tensor(t) and t.ndim]
        state += sum(t.numel() * t.element_size() for t in tensors)
    named = {part.name: part.bytes for part in memory_per_rank(config, FACTS, shape, 1, "cpu")}
    assert named[f"draft: optimizer state ({optimizer})"] == state
    assert checkpoint_bytes(config, shape) == state + 6 * shape.parameters


@pytest.mark.parametrize("form", ["split", "dense"])
@pytest.mark.parametrize("autocast", [True, False])
def test_activations_are_estimated_within_a_tenth_of_what_autograd_keeps(form, autocast):
    """On the CPU, where the whole graph can be looked at; weights cast by autocast count as working copies."""
    config = make(
        draft={"num_hidden_layers": 3, "num_features": 3, "block_size": 8},
        blocks={"num_anchors": 24, "attention": form},
        run={"autocast": autocast},
    )
    torch.manual_seed(0)
    draft = build(config)
    ids = torch.randint(0, 100, (1, 200))
    plan = plan_blocks(ids, torch.ones_like(ids, dtype=torch.bool), block_size=8, num_anchors=24, gamma=4.0)
    dtype = torch.bfloat16 if autocast else torch.float32
    features, embeddings = torch.randn(1, 200, 3 * 320, dtype=dtype), torch.randn(1, 24 * 8, 320, dtype=dtype)
    own = {p.untyped_storage().data_ptr() for p in draft.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            draft(embeddings, features, plan.slot_positions, ATTENTION_FORMS[form](plan, None))
    measured = sum(storage.nbytes() for storage in kept.values())
    shape = draft_shape(config, FACTS)
    estimated = activation_bytes(config, shape, "cpu") + working_copy_bytes(config, shape, 1)
    assert estimated == pytest.approx(measured, rel=0.1)


def test_the_logits_chunk_is_the_objectives():
    assert LOGITS_CHUNK_ROWS == CHUNK_ROWS


def test_every_saving_option_saves_what_it_is_for():
    def parts(world_size=8, **sections):
        config = make(draft={"num_features": 3}, run={"batch_size": 32, "device": "cuda"}, **sections)
        numbers = memory_per_rank(config, FACTS, draft_shape(config, FACTS), world_size, "cuda")
        return {part.name: part for part in numbers}

    plain, name = parts(), "draft: fp32 master weights"
    assert parts(parallel={"strategy": "replicate"})[name].bytes == pytest.approx(8 * plain[name].bytes, rel=1e-6)
    assert parts(parallel={"strategy": "hybrid", "shard_size": 4})[name].bytes == 2 * plain[name].bytes
    assert parts(parallel={"activation_checkpointing": True})["activations"].bytes < plain["activations"].bytes / 2
    copied = parts(checkpoint={"asynchronous": True})["checkpoint being written"]
    assert copied.on_host and copied.bytes == 3 * plain[name].bytes
    assert parts(parallel={"cpu_offload": True})[name].on_host and not plain[name].on_host
    cached = parts(features={"source": "cache", "cache": "x"})
    assert cached["target weights"].bytes == 2 * 1000 * 320 * 2 and "target forward" not in cached
    online = parts(features={"source": "online"}, online={"in_flight": 3})
    assert online["target weights"] == cached["target weights"] and "target forward" not in online
    ahead = online["features asked for ahead"]
    assert ahead.on_host and ahead.bytes == 2 * 3 * (1 << 19)  # 200 tokens of 3 x 320 numbers, to a power of two
    fewer = parts(objective={"candidates": 100})["logits chunk"].bytes
    assert fewer < plain["logits chunk"].bytes


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear", "constant"])
def test_corners_lie_on_the_learning_rate_curve(kind):
    config = make(schedule={"kind": kind}, run={"max_steps": 200})
    points = {point.name: point for point in corners(200, 1.0, 0.1, config.schedule)}
    assert ("start of decay" in points) == (kind != "constant")
    for point in points.values():
        assert point.rate == learning_rate(point.step - 1, 200, 1.0, 0.1, config.schedule)
    assert points["end of warm-up"].step == 8 and points["end of warm-up"].rate == 1.0
    assert points["last step"].step == 200
    if kind == "wsd":
        assert points["start of decay"].step == 161


@pytest.mark.parametrize("epochs", [0.1, 1, 2.5, 3])
def test_steps_are_those_that_the_trainer_takes(epochs):
    config = make(run={"epochs": epochs, "batch_size": 8})
    assert steps_of(epochs, 101, 8) == total_steps(config, 101)


def test_steps_follow_from_epochs_and_counted_conversations():
    config = make(run={"epochs": 2, "batch_size": 8})
    numbers = estimate(config, FACTS, 2, conversations=164)
    assert (numbers.conversations, numbers.steps, numbers.rows, numbers.accumulation) == (100, 25, 200, 4)
    assert numbers.tokens == 200 * 200
    unknown = estimate(config, None, 2)
    assert (unknown.steps, unknown.tokens, unknown.draft_parameters, unknown.memory) == (None, None, None, ())


@pytest.mark.parametrize(
    ("settings", "whole"),
    [({}, False), ({"metrics": {"decode_every": 100}}, True), ({"draft": {"init": "warm"}}, True)],
    ids=["nothing runs the target", "decoding", "warm start"],
)
@pytest.mark.parametrize("features", [{"source": "cache", "cache": "features"}, {"source": "online"}])
def test_with_features_from_elsewhere_the_whole_target_counts_where_something_runs_it(settings, whole, features):
    config = make(features=features, **settings)
    parts = {part.name: part.bytes for part in memory_per_rank(config, FACTS, draft_shape(config, FACTS), 2, "cuda")}
    assert parts["target weights"] == 2 * (FACTS.parameters if whole else 2 * FACTS.vocab_size * FACTS.hidden_size)
