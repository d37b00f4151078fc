"""Losslessness on the embedded target itself, where bf16 rounding is as it is in use."""

import json

import pytest
from scripted_proposer import ScriptedProposer

from dflash.decoding.engine import Engine
from dflash.decoding.prompt import render_prompt
from dflash.target import TargetModel

PROMPTS = ("Explain why the sky is blue to a child.", "Write a Python function that reverses a list.")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_verified_blocks_yield_the_plain_text_on_the_embedded_target(dtype):
    target = TargetModel.load("smollm2-135m", dtype=dtype)
    for text in PROMPTS:
        prompt = render_prompt(target, text, max_new_tokens=64)
        options = {"max_new_tokens": 64, "stop_ids": ()}
        reference = Engine(target).decode_target(prompt, shape="block", block_size=8, **options).finish()
        proposer = ScriptedProposer(
            reference.tokens,
            lambda rng: rng.randrange(8),
            block_size=8,
            layer_ids=(1, 8, 14, 20, 27),
            vocab_size=target.vocab_size,
        )
        trace = Engine(target, proposer=proposer).decode_draft(prompt, **options).finish()
        assert trace.tokens == reference.tokens, json.dumps({"prompt": text, "dtype": dtype})
        assert trace.tau > 2
