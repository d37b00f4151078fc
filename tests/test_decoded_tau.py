"""Decoded tau: real decoding with the current weights, bounded in time, and invisible to the training around it."""

import json

import pytest
import torch

from dflash.config import MetricsConfig, parse_config
from dflash.data.template import Rendered
from dflash.decoding.engine import Engine
from dflash.decoding.prompt import render_prompt
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.training.decoded_tau import DecodedTau, prompts_for
from dflash.training.trainer import train


@pytest.fixture
def draft(tiny_target):
    torch.manual_seed(1)
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4)
    return DFlashDraft(config).train()


@pytest.fixture
def prompts(tiny_target):
    return [render_prompt(tiny_target, text) for text in ("count to ten", "who are you", "abc")]


def test_it_pools_what_the_engine_itself_accepts(tiny_target, draft, prompts):
    measured = DecodedTau(MetricsConfig(decode_tokens=20), tiny_target, prompts).measure(draft)
    engine = Engine(tiny_target, draft.eval())
    traces = [engine.decode_draft(prompt, max_new_tokens=20).finish() for prompt in prompts]
    steps = [step for trace in traces for step in trace.decode_steps]
    assert measured["decoded_steps"] == len(steps)
    assert measured["decoded_reached"] == [sum(step.accepted >= k for step in steps) for k in (1, 2, 3)]
    assert measured["decoded_tau"] == pytest.approx(1 + sum(step.accepted for step in steps) / len(steps))
    assert measured["decoded_tokens"] == sum(trace.decoded_tokens for trace in traces)
    assert (measured["decoded_prompts"], measured["decoded_complete"]) == (3, 3)
    json.dumps(measured)


def test_the_draft_under_training_and_all_random_states_stay_as_they_were(tiny_target, draft, prompts):
    loss = sum(parameter.square().sum() for parameter in draft.parameters())
    loss.backward()
    draft.layers[0].requires_grad_(False)
    before = {name: (p.clone(), p.dtype, p.requires_grad, p.grad.clone()) for name, p in draft.named_parameters()}
    state = torch.get_rng_state()
    DecodedTau(MetricsConfig(decode_tokens=8), tiny_target, prompts).measure(draft)
    assert torch.equal(torch.get_rng_state(), state), "a run that decodes must draw what a run that does not draws"
    assert draft.training
    for name, parameter in draft.named_parameters():
        value, dtype, requires_grad, grad = before[name]
        assert torch.equal(parameter, value) and torch.equal(parameter.grad, grad), name
        assert (parameter.dtype, parameter.requires_grad) == (dtype, requires_grad), name


def test_a_draft_in_another_dtype_than_the_target_is_measured_too(tiny_target, draft, prompts):
    double = DFlashDraft(draft.config).double()
    double.load_state_dict(draft.state_dict())
    tau = DecodedTau(MetricsConfig(decode_tokens=12), tiny_target, prompts)
    clock = {"decoded_seconds": 0}
    assert tau.measure(double) | clock == tau.measure(draft) | clock


def test_a_run_that_was_asked_to_stop_does_not_wait_for_all_prompts(tiny_target, draft, prompts):
    asked = iter([False, False, True, True])
    config = MetricsConfig(decode_tokens=20, decode_seconds=60)
    measured = DecodedTau(config, tiny_target, prompts).measure(draft, hurry=lambda: next(asked))
    assert measured["decoded_complete"] == 0 and 0 < measured["decoded_steps"] <= 3


def test_time_stops_it_between_steps_and_it_says_how_many_prompts_were_complete(
    tiny_target, draft, prompts, monkeypatch
):
    now = iter(range(1000))  # one second passes at every look at the clock
    monkeypatch.setattr("dflash.training.decoded_tau.time.monotonic", lambda: next(now))
    config = MetricsConfig(decode_tokens=5, decode_seconds=8)
    measured = DecodedTau(config, tiny_target, prompts).measure(draft)
    whole = Engine(tiny_target, draft.eval()).decode_draft(prompts[0], max_new_tokens=5).finish()
    assert 0 < measured["decoded_complete"] < 3, "the random draft needs a prefill and four steps for five tokens"
    assert measured["decoded_steps"] >= len(whole.decode_steps)
    now = iter(range(1000))
    config = MetricsConfig(decode_tokens=5, decode_seconds=0.5)
    measured = DecodedTau(config, tiny_target, prompts).measure(draft)
    assert measured["decoded_tau"] is None and measured["decoded_complete"] == measured["decoded_steps"] == 0
    assert measured["decoded_reached"] == [0, 0, 0]


def test_prompts_come_from_the_file_or_from_before_the_last_answer(tiny_target, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "turns": [f"say {i}", "again"]}) + "\n" for i in range(6)))
    config = MetricsConfig(decode_prompts=str(path), decode_count=2, decode_tokens=4)
    assert prompts_for(config, tiny_target, []) == [render_prompt(tiny_target, f"say {i}") for i in range(2)]

    two_answers = Rendered("a", [9, 8, 7, 6, 5, 4, 3], [False, True, False, False, True, True, False])
    no_prompt = Rendered("b", [1, 2], [True, True])
    too_long = Rendered("c", list(range(250)) * 3, [False] * 740 + [True] * 10)
    held_out = [no_prompt, too_long, two_answers, two_answers]
    config = MetricsConfig(decode_count=3, decode_tokens=4)
    assert prompts_for(config, tiny_target, held_out) == [[9, 8, 7, 6]] * 2
    with pytest.raises(UserError, match="None of 2 held-out conversations.*metrics.decode_prompts"):
        prompts_for(config, tiny_target, [no_prompt, too_long])


def test_prompts_that_leave_no_room_are_refused_before_training(tiny_target):
    with pytest.raises(UserError, match="context"):
        DecodedTau(MetricsConfig(decode_tokens=64), tiny_target, [[1] * 500])


def test_a_run_that_decodes_has_the_losses_of_one_that_does_not(tiny_target_folder, tmp_path):
    talk = tmp_path / "talk.jsonl"
    with open(talk, "w") as file:
        for i in range(8):
            messages = [{"role": "user", "content": f"count {i}"}, {"role": "assistant", "content": f"one two {i}"}]
            file.write(json.dumps({"id": f"c{i}", "messages": messages}) + "\n")
    tree = {
        "target": {"name": tiny_target_folder, "dtype": "float32"},
        "draft": {"num_hidden_layers": 1, "num_features": 3, "block_size": 4},
        "data": {"train": [str(talk)], "validation_size": 2, "max_length": 64},
        "blocks": {"num_anchors": 4},
        "run": {"max_steps": 4, "batch_size": 2, "autocast": False},
        "metrics": {"log_every": 1, "validate_every": 2},
    }
    decoding = tree | {"metrics": tree["metrics"] | {"decode_every": 1, "decode_count": 2, "decode_tokens": 8}}
    lines = {}
    for name, settings in (("plain", tree), ("decoding", decoding)):
        train(parse_config(settings, "test"), tmp_path / name, progress=False)
        lines[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    judged = [
        [(line["kind"], line["step"], line["loss"]) for line in lines[name] if "loss" in line] for name in lines
    ]
    assert judged[0] == judged[1] and len(judged[0]) >= 6
    taus = [line["decoded_tau"] for line in lines["decoding"] if "decoded_tau" in line]
    assert len(taus) == 4 and all(tau >= 1 for tau in taus)
    assert not any("decoded_tau" in line for line in lines["plain"])
