"""Shared fixtures: tiny targets with a real byte-level tokenizer and a chat template, on one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from dflash.target import TargetModel

torch.set_num_threads(1)

@pytest.fixture(scope="session")
def tiny_target_folder(tmp_path_factory) -> str:
    """A saved random Llama: 6 layers, hidden 32, 4 heads over 2 KV heads, vocabulary 264."""
    folder = tmp_path_factory.mktemp("tiny-target")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.2,  # random logits that differ clearly, so that greedy choices are not ties
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_target(tiny_target_folder) -> TargetModel:
    return TargetModel.load(tiny_target_folder, dtype="float32")
