"""Why block decoding is exact: a token's logits do not depend on the row of the block in which it stands."""

import pytest
import torch

from dflash.cache import growing_cache
from dflash.target import TargetModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_sees_whole_tiles_of_finite_keys_and_the_mask_knows(dtype):
    cache = growing_cache(1)
    cache.update(torch.ones(1, 2, 70, 4, dtype=dtype), torch.ones(1, 2, 70, 4, dtype=dtype), layer_idx=0)
    expected, offset = cache.get_mask_sizes(8, 0)
    block = torch.ones(1, 2, 8, 4, dtype=dtype)
    keys, values = cache.update(block, block, layer_idx=0)
    assert keys.shape[2] == values.shape[2] == expected == (128 if dtype == torch.bfloat16 else 512)
    assert offset == 0
    assert keys.isfinite().all() and values.isfinite().all()
    assert cache.get_seq_length() == 78


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [4, 8, 16])
def test_a_token_has_the_same_logits_in_whichever_row_of_a_block_it_stands(tiny_target_folder, dtype, block):
    target = TargetModel.load(tiny_target_folder, dtype=dtype)
    ids = torch.randint(0, 250, (1, 360), generator=torch.Generator().manual_seed(0))
    texts = []
    for kept in (1, 3, block):  # tokens kept of every block, so that each position meets other rows
        cache = target.new_cache()
        target.forward(ids[:, :30], cache)
        rows = []
        while (start := cache.get_seq_length()) < 330:
            rows.append(target.forward(ids[:, start : start + block], cache).logits[0, :kept])
            cache.crop(kept - block)
        texts.append(torch.cat(rows)[:300])
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
