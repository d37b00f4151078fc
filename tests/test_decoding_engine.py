"""The engine: same text as plain decoding whatever is proposed, honest counts, clean ends."""

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from scripted_proposer import ScriptedProposer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicCache

from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

PROMPT = [5, 9, 200, 31, 77, 8]
NEVER_STOP = {"stop_ids": ()}


@pytest.fixture(scope="module")
def tiny_draft(tiny_target):
    torch.manual_seed(1)
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4)
    return DFlashDraft(config).eval()


def plain(target, tokens=40, block_size=4, **options):
    options = NEVER_STOP | options
    return Engine(target).decode_target(
        PROMPT, max_new_tokens=tokens, shape="block", block_size=block_size, **options
    ).finish()


def scripted(target, continuation, right, **options):
    return Engine(target, proposer=ScriptedProposer(continuation, right, **options))


def test_a_proposer_that_is_always_right_emits_whole_blocks(tiny_target):
    reference = plain(tiny_target, 41)
    trace = scripted(tiny_target, reference.tokens, lambda rng: 3).decode_draft(
        PROMPT, max_new_tokens=41, **NEVER_STOP
    ).finish()
    assert trace.tokens == reference.tokens
    assert trace.tau == 4.0
    assert trace.accepted_histogram == [0, 0, 0, 10]


def test_a_proposer_that_is_always_wrong_costs_only_time(tiny_target):
    reference = plain(tiny_target)
    trace = scripted(tiny_target, reference.tokens, lambda rng: 0).decode_draft(
        PROMPT, max_new_tokens=40, **NEVER_STOP
    ).finish()
    assert trace.tokens == reference.tokens
    assert trace.tau == 1.0
    assert all(step.accepted == 0 and step.emitted == [step.correction] for step in trace.decode_steps)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block_size", [2, 4, 8, 16])
def test_any_mixture_of_right_and_wrong_proposals_yields_the_plain_text(tiny_target_folder, dtype, block_size):
    target = TargetModel.load(tiny_target_folder, dtype=dtype)
    reference = plain(target, 150, block_size)
    engine = scripted(target, reference.tokens, lambda rng: rng.randrange(block_size), block_size=block_size)
    trace = engine.decode_draft(PROMPT, max_new_tokens=150, **NEVER_STOP).finish()
    assert trace.tokens == reference.tokens
    assert 1 < trace.tau < block_size


def test_the_draft_is_given_the_features_of_every_accepted_token_once(tiny_target):
    reference = plain(tiny_target, 20)
    engine = scripted(tiny_target, reference.tokens, lambda rng: rng.randrange(4))
    engine.decode_draft(PROMPT, max_new_tokens=20, **NEVER_STOP).finish()
    seen = torch.cat(engine.proposer.features, dim=1)
    whole = tiny_target.features(torch.tensor([PROMPT + reference.tokens]), engine.proposer.layer_ids)
    assert seen.shape[1] > len(PROMPT) + 10
    torch.testing.assert_close(seen, whole[:, : seen.shape[1]], atol=1e-4, rtol=1e-4)


def test_a_real_draft_with_random_weights_changes_no_token(tiny_target, tiny_draft):
    engine = Engine(tiny_target, tiny_draft)
    trace = engine.decode_draft(PROMPT, max_new_tokens=60, **NEVER_STOP).finish()
    assert trace.tokens == plain(tiny_target, 60).tokens
    assert trace.mode == "draft" and trace.block_size == 4


def test_a_smaller_block_than_the_trained_one_is_allowed_and_a_larger_one_refused(tiny_target, tiny_draft):
    engine = Engine(tiny_target, tiny_draft)
    trace = engine.decode_draft(PROMPT, max_new_tokens=20, block_size=3, **NEVER_STOP).finish()
    assert {len(step.proposed) for step in trace.decode_steps} == {2}
    with pytest.raises(UserError, match="larger than the draft's 4"):
        engine.decode_draft(PROMPT, max_new_tokens=20, block_size=5)
    with pytest.raises(UserError, match="at least 2"):
        engine.decode_draft(PROMPT, max_new_tokens=20, block_size=1)


@pytest.mark.parametrize("tokens", range(1, 10))
def test_the_token_limit_is_met_exactly(tiny_target, tokens):
    reference = plain(tiny_target, 12)
    engine = scripted(tiny_target, reference.tokens, lambda rng: 3)
    trace = engine.decode_draft(PROMPT, max_new_tokens=tokens, **NEVER_STOP).finish()
    assert trace.tokens == reference.tokens[:tokens]
    assert not trace.stopped
    token_shape = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=tokens, **NEVER_STOP).finish()
    assert len(token_shape.tokens) == tokens


def test_a_stop_token_inside_an_accepted_run_ends_the_text_there(tiny_target):
    reference = plain(tiny_target, 30)
    at = next(i for i in range(5, 30) if i % 4 == 2 and reference.tokens[i] not in reference.tokens[:i])
    stop = {"stop_ids": {reference.tokens[at]}}
    trace = scripted(tiny_target, reference.tokens, lambda rng: 3).decode_draft(
        PROMPT, max_new_tokens=30, **stop
    ).finish()
    assert trace.stopped
    assert trace.tokens == reference.tokens[: at + 1]
    assert trace.steps[-1].accepted == 3 and len(trace.steps[-1].emitted) < 4
    assert plain(tiny_target, 30, **stop).tokens == trace.tokens


def test_a_first_token_that_stops_leaves_nothing_to_decode(tiny_target, tiny_draft):
    first = plain(tiny_target, 1).tokens[0]
    trace = Engine(tiny_target, tiny_draft).decode_draft(PROMPT, max_new_tokens=9, stop_ids={first}).finish()
    assert trace.tokens == [first] and trace.stopped
    assert (trace.tau, trace.tok_s, trace.seconds) == (0.0, 0.0, 0.0)


def test_decoding_up_to_the_last_position_of_the_context_keeps_the_shape(tiny_target):
    prompt = [(7 * i) % 250 for i in range(tiny_target.max_length - 30)]
    options = {"max_new_tokens": 30, **NEVER_STOP}
    reference = Engine(tiny_target).decode_target(prompt, shape="block", block_size=8, **options).finish()
    engine = scripted(tiny_target, reference.tokens, lambda rng: rng.randrange(8), block_size=8)
    assert engine.decode_draft(prompt, **options).finish().tokens == reference.tokens
    with pytest.raises(UserError, match="512 tokens of context"):
        engine.decode_draft(prompt, max_new_tokens=31)


def test_steps_arrive_one_by_one_and_closing_frees_the_caches(tiny_target, tiny_draft):
    stream = Engine(tiny_target, tiny_draft).decode_draft(PROMPT, max_new_tokens=40, **NEVER_STOP)
    first = next(stream)
    assert first.index == 0 and len(first.emitted) == 1 and first.proposed == []
    assert stream.trace.time_to_first_token_s > 0
    next(stream)
    assert len(stream.trace.steps) == 2
    session = stream._steps.gi_frame.f_locals["self"]
    stream.close()
    assert session._cache is None and session._drafting is None
    assert list(stream) == []


def test_times_add_up_and_waiting_consumers_cost_nothing(tiny_target, tiny_draft):
    import time

    stream = Engine(tiny_target, tiny_draft).decode_draft(PROMPT, max_new_tokens=8, **NEVER_STOP)
    for _ in stream:
        time.sleep(0.2)
    trace = stream.trace
    assert trace.seconds == pytest.approx(sum(s.draft_s + s.verify_s + s.overhead_s for s in trace.steps[1:]))
    assert 0 < trace.seconds < 0.2 * len(trace.decode_steps)
    assert trace.prefill_s >= trace.time_to_first_token_s > 0
    assert all(step.draft_s > 0 and step.verify_s > 0 and step.overhead_s >= 0 for step in trace.decode_steps)


def test_plain_decoding_captures_no_features(tiny_target, monkeypatch):
    asked = []
    forward = tiny_target.forward
    monkeypatch.setattr(
        tiny_target, "forward", lambda *a, **k: (asked.append(tuple(k.get("layer_ids", ()))), forward(*a, **k))[1]
    )
    Engine(tiny_target).decode_target(PROMPT, max_new_tokens=5, **NEVER_STOP).finish()
    assert set(asked) == {()}


def test_the_same_seed_gives_plain_sampling_and_the_target_rule_the_same_text(tiny_target, tiny_draft):
    sampling = Sampling(temperature=0.8, seed=3)
    reference = plain(tiny_target, 60, sampling=sampling)
    engine = Engine(tiny_target, tiny_draft)
    assert engine.decode_draft(PROMPT, max_new_tokens=60, sampling=sampling, **NEVER_STOP).finish().tokens == (
        reference.tokens
    )
    assert plain(tiny_target, 60, sampling=Sampling(temperature=0.8, seed=4)).tokens != reference.tokens


def test_bad_arguments_are_refused_in_a_sentence(tiny_target, tiny_draft):
    engine = Engine(tiny_target)
    with pytest.raises(UserError, match="no draft"):
        engine.decode_draft(PROMPT, max_new_tokens=5)
    with pytest.raises(UserError, match="empty"):
        engine.decode_target([], max_new_tokens=5)
    with pytest.raises(UserError, match="max_new_tokens 0"):
        engine.decode_target(PROMPT, max_new_tokens=0)
    with pytest.raises(UserError, match="Unknown shape"):
        engine.decode_target(PROMPT, max_new_tokens=5, shape="blocks")
    with pytest.raises(UserError, match="block_size is not set"):
        engine.decode_target(PROMPT, max_new_tokens=5, shape="block")
    with pytest.raises(UserError, match="same dtype"):
        Engine(tiny_target, DFlashDraft(tiny_draft.config).bfloat16())


def small_target(kind: str, dtype: torch.dtype) -> TargetModel:
    shape = dict(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    if kind == "sliding":
        model = MistralForCausalLM(MistralConfig(sliding_window=16, **shape))
    elif kind == "alternating":
        model = Gemma2ForCausalLM(Gemma2Config(sliding_window=16, **shape))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
    return TargetModel(model.to(dtype), byte_tokenizer(), kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sliding", "alternating", "full"])
def test_other_families_and_sliding_windows_are_decoded_exactly(kind, dtype):
    target = small_target(kind, dtype)
    reference = plain(target, 120)
    trace = scripted(target, reference.tokens, lambda rng: rng.randrange(4)).decode_draft(
        PROMPT, max_new_tokens=120, **NEVER_STOP
    ).finish()
    assert trace.tokens == reference.tokens
    if dtype == torch.float32:  # and the window is the model's own, as without any cache
        text = torch.tensor([PROMPT + trace.tokens])
        assert target.forward(text).logits[0, len(PROMPT) - 1 : -1].argmax(-1).tolist() == trace.tokens


def test_a_target_whose_state_cannot_be_cropped_only_decodes_token_by_token(tiny_target, monkeypatch):
    rolling = DynamicCache(config=MistralConfig(sliding_window=16, num_hidden_layers=6))
    monkeypatch.setattr(tiny_target, "new_cache", lambda: rolling)
    with pytest.raises(UserError, match="cannot take back rejected tokens"):
        Engine(tiny_target).decode_target(PROMPT, max_new_tokens=5, shape="block", block_size=4)
    Engine(tiny_target).decode_target(PROMPT, max_new_tokens=5)
