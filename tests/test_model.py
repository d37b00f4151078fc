"""The draft model: its public form, its two sources, and the agreement of training and decoding forwards."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dflash.blocks.attention import DenseAttention
from dflash.blocks.plan import lay_out
from dflash.errors import UserError
from dflash.layer_ids import default_layer_ids
from dflash.manifest import read_manifest
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.model.draft_folder import SHIPPED_DRAFTS, check_whole, find_draft


def make_draft(target, **changes) -> DFlashDraft:
    settings = {"num_hidden_layers": 2, "num_features": 3, "block_size": 4, **changes}
    rope = settings.pop("rope_parameters", None)
    config = DFlashConfig.for_target(target, **settings)
    if rope:
        config.rope_parameters = rope
    config.initializer_range = 0.2
    torch.manual_seed(1)
    draft = DFlashDraft(config)
    for name, parameter in draft.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return draft.eval()


@pytest.fixture
def text(tiny_target):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 250, (1, 24), generator=generator)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def forward_blocks(draft, target, ids, loss_mask, anchors, features=None):
    plan = lay_out(
        ids, loss_mask, torch.tensor([anchors]), torch.ones(1, len(anchors), dtype=torch.bool),
        block_size=draft.config.block_size, gamma=4.0,
    )
    if features is None:
        features = target.features(ids, draft.config.target_layer_ids)
    embeddings = target.embedding(plan.slot_inputs(ids, draft.config.mask_token_id))
    hidden = draft(embeddings, features, plan.slot_positions, DenseAttention(plan, draft.config.sliding_window))
    return hidden.view(len(anchors), draft.config.block_size, -1)


def reference_block(draft, target, ids, anchor):
    """One block written out with plain loops: heads, keys and rotation one at a time."""
    config = draft.config
    weights = draft.state_dict()

    def norm(x, weight):
        return x * (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weight

    def turn(vector, position):
        half = config.head_dim // 2
        angles = position * config.rope_parameters["rope_theta"] ** (-torch.arange(half) * 2.0 / config.head_dim)
        low, high = vector[:half], vector[half:]
        return torch.cat([low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()])

    features = target.features(ids, config.target_layer_ids)[0, :anchor]
    context = norm(features @ weights["fc.weight"].T, weights["hidden_norm.weight"])
    slots = [int(ids[0, anchor])] + [config.mask_token_id] * (config.block_size - 1)
    states = target.embedding(torch.tensor(slots))
    group = config.num_attention_heads // config.num_key_value_heads
    for index in range(config.num_hidden_layers):
        w = {k.removeprefix(f"layers.{index}."): v for k, v in weights.items() if k.startswith(f"layers.{index}.")}
        normed = norm(states, w["input_layernorm.weight"])
        source = torch.cat([context, normed])
        queries = (normed @ w["self_attn.q_proj.weight"].T).unflatten(-1, (-1, config.head_dim))
        keys = (source @ w["self_attn.k_proj.weight"].T).unflatten(-1, (-1, config.head_dim))
        values = (source @ w["self_attn.v_proj.weight"].T).unflatten(-1, (-1, config.head_dim))
        out = torch.zeros_like(queries)
        for head in range(config.num_attention_heads):
            k = [turn(norm(keys[p, head // group], w["self_attn.k_norm.weight"]), p) for p in range(len(source))]
            for slot in range(config.block_size):
                q = turn(norm(queries[slot, head], w["self_attn.q_norm.weight"]), anchor + slot)
                probs = torch.stack([q @ key for key in k]).div(config.head_dim**0.5).softmax(0)
                out[slot, head] = probs @ values[:, head // group]
        states = states + out.flatten(1) @ w["self_attn.o_proj.weight"].T
        normed = norm(states, w["post_attention_layernorm.weight"])
        gate = F.silu(normed @ w["mlp.gate_proj.weight"].T)
        states = states + (gate * (normed @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    return norm(states, weights["norm.weight"])


@torch.no_grad()
def test_training_forward_equals_the_written_out_model(tiny_target, text):
    draft = make_draft(tiny_target)
    blocks = forward_blocks(draft, tiny_target, *text, anchors=[3, 9, 17])
    for row, anchor in enumerate([3, 9, 17]):
        torch.testing.assert_close(blocks[row], reference_block(draft, tiny_target, text[0], anchor), atol=2e-4, rtol=1e-3)


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 6}, {"sliding_window": 2}, {"rope_parameters": SCALED}, {"rope_parameters": PARTIAL}])
@torch.no_grad()
def test_decoding_forward_equals_training_forward(tiny_target, text, changes):
    draft = make_draft(tiny_target, **changes)
    ids, _ = text
    features = tiny_target.features(ids, draft.config.target_layer_ids)
    blocks = forward_blocks(draft, tiny_target, *text, anchors=[5, 8, 19])
    cache = draft.new_cache()
    for row, anchor in enumerate([5, 8, 19]):
        draft.extend_context(features[:, cache.length : anchor], cache)  # only the new tokens are projected
        assert cache.length == anchor
        slots = torch.full((1, 4), draft.config.mask_token_id)
        slots[0, 0] = ids[0, anchor]
        hidden = draft.forward_block(tiny_target.embedding(slots), cache)
        assert cache.length == anchor, "a block must not enter the context cache"
        torch.testing.assert_close(hidden[0], blocks[row], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_rotary_parameters_change_the_output(tiny_target, text):
    outputs = [
        forward_blocks(make_draft(tiny_target, **c), tiny_target, *text, anchors=[9])
        for c in ({}, {"rope_parameters": SCALED}, {"rope_parameters": PARTIAL})
    ]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])


@torch.no_grad()
def test_a_block_sees_its_context_and_nothing_else(tiny_target, text):
    draft = make_draft(tiny_target)
    ids, _ = text
    features = tiny_target.features(ids, draft.config.target_layer_ids)
    before = forward_blocks(draft, tiny_target, *text, anchors=[9, 12], features=features)
    for position in range(ids.shape[1]):
        changed = features.clone()
        changed[0, position] += 1.0
        after = forward_blocks(draft, tiny_target, *text, anchors=[9, 12], features=changed)
        assert torch.equal(after[0], before[0]) == (position >= 9)
        assert torch.equal(after[1], before[1]) == (position >= 12)


def test_public_folder_round_trip_keeps_every_tensor_and_setting(tiny_target, tmp_path):
    draft = make_draft(tiny_target, num_hidden_layers=5)
    draft.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights) == 58
    assert all(t.dtype == torch.bfloat16 for t in weights.values())
    assert {"fc.weight", "hidden_norm.weight", "norm.weight", "layers.4.self_attn.q_norm.weight"} <= weights.keys()
    again = DFlashDraft.from_pretrained(tmp_path, dtype="float32")
    assert again.config == draft.config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, draft.state_dict()[name].bfloat16().float())


def test_public_config_reads_the_published_form():
    public = {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16,
        "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}, "num_target_layers": 36,
        "num_hidden_layers": 5, "layer_types": ["full_attention"] * 5, "hidden_size": 4096, "intermediate_size": 12288,
        "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 40960, "sliding_window": None,
        "bos_token_id": 151643, "eos_token_id": 151645,
    }  # fmt: skip
    config = DFlashConfig.from_public(public)
    written = config.to_public()
    assert written["rope_parameters"]["rope_theta"] == written["rope_theta"] == 1000000
    for key, value in public.items():
        assert written[key] == value, key


def test_older_spellings_of_scaled_and_partial_rotary_are_read(tiny_target):
    public = make_draft(tiny_target).config.to_public()
    del public["rope_parameters"]
    public |= {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    rope = DFlashConfig.from_public(public).rope_parameters
    assert rope == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    written = DFlashConfig.from_public(public).to_public()
    assert written["partial_rotary_factor"] == 0.5 and written["rope_scaling"]["rope_type"] == "linear"


def test_rotary_frequencies_stay_float32_whatever_the_weights_are(tiny_target, tmp_path):
    draft = make_draft(tiny_target)
    draft.save_pretrained(tmp_path)
    loaded = DFlashDraft.from_pretrained(tmp_path, dtype="bfloat16")
    assert loaded.fc.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.rotary.inv_freq, draft.rotary.inv_freq) and loaded.rotary.inv_freq.dtype == torch.float32


def test_default_layer_ids_follow_the_published_rule():
    assert default_layer_ids(36, 5) == [1, 9, 17, 25, 33]
    assert default_layer_ids(64, 5) == [1, 16, 31, 46, 61]
    assert default_layer_ids(30, 1) == [15]


@pytest.mark.parametrize("damage", ["missing tensor", "unknown tensor", "shape", "garbage", "no config", "bad json", "other architecture"])
def test_a_damaged_draft_folder_is_refused_with_a_sentence(tiny_target, tmp_path, damage):
    make_draft(tiny_target).save_pretrained(tmp_path)
    (tmp_path / "checksums.json").unlink()  # as other tools leave it
    weights_path, config_path = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights = load_file(weights_path)
    if damage == "missing tensor":
        del weights["fc.weight"]
    elif damage == "unknown tensor":
        weights["lm_head.weight"] = torch.zeros(2)
    elif damage == "shape":
        weights["fc.weight"] = torch.zeros(2, 2)
    save_file(weights, weights_path)
    if damage == "garbage":
        weights_path.write_bytes(b"not safetensors")
    elif damage == "no config":
        config_path.unlink()
    elif damage == "bad json":
        config_path.write_text("{")
    elif damage == "other architecture":
        config_path.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UserError, match=r"fc.weight|lm_head|model.safetensors|config.json"):
        DFlashDraft.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "draft_vocabulary.json"])
def test_a_flipped_bit_in_any_file_of_a_draft_is_found(tiny_target, tmp_path, name):
    draft = make_draft(tiny_target)
    draft.vocabulary = torch.tensor([3, 7])
    draft.save_pretrained(tmp_path)
    DFlashDraft.from_pretrained(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    block_size = b'"block_size": '  # 4 becomes 5, which no parser minds
    place = content.index(block_size) + len(block_size) if name == "config.json" else len(content) - 5
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged .*{name} does not match its checksum.*copy or download it again"):
        DFlashDraft.from_pretrained(tmp_path)


def test_damaged_checksums_are_refused_and_a_draft_of_other_tools_needs_none(tiny_target, tmp_path):
    make_draft(tiny_target).save_pretrained(tmp_path)
    (tmp_path / "checksums.json").write_text("{")
    with pytest.raises(UserError, match=r"checksums\.json could not be read"):
        DFlashDraft.from_pretrained(tmp_path)
    (tmp_path / "checksums.json").unlink()
    DFlashDraft.from_pretrained(tmp_path)


def test_saving_that_is_cut_short_leaves_no_checksums_of_older_files(tiny_target, tmp_path, monkeypatch):
    make_draft(tiny_target).save_pretrained(tmp_path)

    def full(*_arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("dflash.model.draft.save_vocabulary", full)
    with pytest.raises(OSError):
        make_draft(tiny_target, block_size=8).save_pretrained(tmp_path)
    assert DFlashDraft.from_pretrained(tmp_path).config.block_size == 8


def test_a_checkpoint_of_a_run_stands_for_the_draft_in_it(tiny_target, tmp_path):
    make_draft(tiny_target).save_pretrained(tmp_path / "step_0000004" / "draft")
    for name in (tmp_path / "step_0000004", tmp_path / "step_0000004" / "draft"):
        assert find_draft(str(name), tiny_target.name) == tmp_path / "step_0000004" / "draft"


def test_the_shipped_draft_has_checksums():
    (folder,) = SHIPPED_DRAFTS.values()
    entries = read_manifest(folder / "checksums.json")
    assert set(entries) == {"config.json", "model.safetensors", "draft_vocabulary.json"}
    check_whole(folder)


def test_a_draft_for_another_target_is_refused(tiny_target):
    draft = make_draft(tiny_target)
    draft.config.vocab_size, draft.config.target_name = 151936, "Qwen/Qwen3-8B"
    with pytest.raises(UserError, match=r"Qwen/Qwen3-8B.*vocabulary 151936 instead of 264"):
        draft.check_target(tiny_target)
