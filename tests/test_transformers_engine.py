"""The other ways on the same target: the target's own text, honest counts, assistants that fit."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling
from dflash.decoding.transformers_engine import WAYS, TransformersEngine, load_assistant
from dflash.errors import UserError
from dflash.target import TargetModel

PROMPT = [5, 9, 200, 31, 77, 8]


@pytest.fixture(scope="module")
def engine(tiny_target) -> TransformersEngine:
    return TransformersEngine(tiny_target, tiny_assistant(tiny_target, seed=7))


def tiny_assistant(target: TargetModel, *, seed: int, tokenizer=None, **changes) -> TargetModel:
    torch.manual_seed(seed)
    shape = {"vocab_size": 264, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512} | changes
    model = LlamaForCausalLM(LlamaConfig(eos_token_id=target.tokenizer.eos_token_id, bos_token_id=None, **shape))
    return TargetModel(model, tokenizer or target.tokenizer, "small")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_targets_own_text(engine, tiny_target, way):
    plain = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=40).finish()
    assert list(engine.decode(PROMPT, way=way, max_new_tokens=40).tokens) == plain.tokens


def test_an_assistant_that_is_the_target_itself_needs_fewer_forwards_of_it(tiny_target_folder, tiny_target):
    twin = TargetModel.load(tiny_target_folder, dtype="float32")
    found = TransformersEngine(tiny_target, twin).decode(PROMPT, way="assistant", max_new_tokens=40)
    assert found.tau > 1.5
    plain = TransformersEngine(tiny_target).decode(PROMPT, way="plain", max_new_tokens=40)
    assert (plain.tau, plain.first_tokens, plain.forwards) == (1.0, 1, len(plain.tokens) - 1)
    assert found.forwards < plain.forwards and found.tokens == plain.tokens


def test_settings_in_the_models_own_file_do_not_bend_the_text(tiny_target, monkeypatch):
    plain = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=30).finish()
    own = tiny_target.model.generation_config
    for name, value in {"repetition_penalty": 5.0, "do_sample": True, "top_k": 3, "no_repeat_ngram_size": 1}.items():
        monkeypatch.setattr(own, name, value)
    assert list(TransformersEngine(tiny_target).decode(PROMPT, way="plain", max_new_tokens=30).tokens) == plain.tokens


def test_a_listener_costs_no_time_and_may_end_the_decoding_at_once(engine):
    import time

    class Enough(Exception):
        pass

    seen = []

    def slow(tokens):
        seen.append(tokens)
        time.sleep(0.1)
        if len(seen) == 4:
            raise Enough

    with pytest.raises(Enough):
        engine.decode(PROMPT, way="plain", max_new_tokens=100, on_tokens=slow)
    assert len(seen) == 4
    assert not engine.target.model._forward_pre_hooks
    found = engine.decode(PROMPT, way="plain", max_new_tokens=8, on_tokens=lambda tokens: time.sleep(0.2))
    assert 0 < found.seconds < 0.2 * found.forwards


def test_sampling_goes_by_its_seed_and_leaves_the_global_generator_alone(engine):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    texts = [
        engine.decode(PROMPT, way="plain", max_new_tokens=20, sampling=Sampling(1.0, seed=seed)).tokens
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_assistant_with_another_tokenizer_or_vocabulary_is_refused(tiny_target, tiny_target_folder):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_target_folder)
    other.add_tokens(["<new>"])
    with pytest.raises(UserError, match=r"another tokenizer .*1 entries"):
        TransformersEngine(tiny_target, tiny_assistant(tiny_target, seed=1, tokenizer=other))
    with pytest.raises(UserError, match="scores 300 tokens"):
        TransformersEngine(tiny_target, tiny_assistant(tiny_target, seed=1, vocab_size=300))


def test_mistakes_are_one_sentence(tiny_target):
    engine = TransformersEngine(tiny_target)
    with pytest.raises(UserError, match="no small model"):
        engine.decode(PROMPT, way="assistant", max_new_tokens=4)
    with pytest.raises(UserError, match="Unknown way 'magic'"):
        engine.decode(PROMPT, way="magic", max_new_tokens=4)
    with pytest.raises(UserError, match="lookup_tokens 0"):
        engine.decode(PROMPT, way="prompt_lookup", max_new_tokens=4, lookup_tokens=0)
    with pytest.raises(UserError, match="tokens of context"):
        engine.decode(PROMPT, way="plain", max_new_tokens=100_000)
    with pytest.raises(UserError, match="The small model cannot be used: .*/no/such/model"):
        load_assistant("/no/such/model", tiny_target)
