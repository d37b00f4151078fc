"""The draft's shape is read from its target, or the target is refused in words."""

import pytest
from transformers import AutoModelForCausalLM, GPT2Config

from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.target import TargetModel


def test_a_target_without_rotary_positions_is_refused_by_name(tiny_target):
    gpt2 = GPT2Config(vocab_size=264, n_embd=32, n_layer=6, n_head=4, n_positions=64)
    target = TargetModel(AutoModelForCausalLM.from_config(gpt2), tiny_target.tokenizer, "little-gpt2")
    with pytest.raises(UserError, match=r"'little-gpt2' \(gpt2\) has no rotary positions"):
        DFlashConfig.for_target(target, num_features=2)
