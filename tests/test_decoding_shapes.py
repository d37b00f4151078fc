"""Why block decoding is exact: a token's logits do not depend on the row of the block in which it stands."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dflash.cache import growing_cache
from dflash.target import TargetModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_sees_whole_tiles_of_finite_keys_and_the_mask_knows(dtype):
    cache = growing_cache(1)
    cache.update(torch.ones(1, 2, 70, 4, dtype=dtype), torch.ones(1, 2, 70, 4, dtype=dtype), layer_idx=0)
    expected, offset = cache.get_mask_sizes(8, 0)
    block = torch.ones(1, 2, 8, 4, dtype=dtype)
    keys, values = cache.update(block, block, layer_idx=0)
    assert keys.shape[2] == values.shape[2] == expected == 512
    assert offset == 0
    assert keys.isfinite().all() and values.isfinite().all()
    assert cache.get_seq_length() == 78


@pytest.fixture(scope="module")
def real_heads_folder(tmp_path_factory, tiny_target_folder) -> str:
    """A random target with heads of 64 dimensions, as real ones have: the matrix library treats small ones otherwise."""
    folder = tmp_path_factory.mktemp("real-heads")
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=576,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [4, 8, 16])
def test_a_token_has_the_same_logits_in_whichever_row_of_a_block_it_stands(real_heads_folder, dtype, block):
    target = TargetModel.load(real_heads_folder, dtype=dtype)
    ids = torch.randint(0, 250, (1, 590), generator=torch.Generator().manual_seed(0))
    texts = []
    for kept in (1, 3, block):  # tokens kept of every block, so that each position meets other rows
        cache = target.new_cache()
        target.forward(ids[:, :30], cache)
        rows = []
        while (start := cache.get_seq_length()) < 560:
            rows.append(target.forward(ids[:, start : start + block], cache).logits[0, :kept])
            cache.crop(kept - block)
        texts.append(torch.cat(rows)[:530])
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
