"""The growing cache holds what transformers' own cache holds, and forgets exactly what it is told to."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from dflash.cache import _FIRST_CAPACITY, growing_cache


def states(length: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 2, length, 4, generator=generator) for _ in range(2))


def test_updates_past_the_first_capacity_keep_every_token():
    ours, theirs = growing_cache(1), DynamicCache()
    for seed, length in enumerate((7, _FIRST_CAPACITY, 1, 3 * _FIRST_CAPACITY)):
        ours.update(*states(length, seed=seed), layer_idx=0)
        keys, values = theirs.update(*states(length, seed=seed), layer_idx=0)
        assert torch.equal(ours.layers[0].keys, keys)
        assert torch.equal(ours.layers[0].values, values)
    assert ours.get_seq_length() == 8 + 4 * _FIRST_CAPACITY


def test_crop_forgets_the_newest_tokens_and_the_next_update_follows_the_kept_ones():
    cache = growing_cache(1)
    kept, _ = states(10)
    cache.update(*states(10), layer_idx=0)
    cache.crop(-4)
    assert cache.get_seq_length() == 6
    new_keys, new_values = states(3, seed=1)
    cache.update(new_keys, new_values, layer_idx=0)
    assert torch.equal(cache.layers[0].keys, torch.cat([kept[:, :, :6], new_keys], dim=2))


def test_crop_of_more_than_is_held_leaves_an_empty_cache():
    cache = growing_cache(1)
    cache.update(*states(3), layer_idx=0)
    cache.crop(-10)
    assert cache.get_seq_length() == 0


def test_crop_by_a_positive_number_is_an_error():
    cache = growing_cache(1)
    cache.update(*states(3), layer_idx=0)
    with pytest.raises(ValueError, match="negative"):
        cache.layers[0].crop(1)


def test_an_update_in_place_does_not_move_the_buffer():
    cache = growing_cache(1)
    for length in (3, 5):
        cache.update(*states(length), layer_idx=0)
    before = cache.layers[0].keys.data_ptr()
    for length in (5, 1, 40):
        cache.update(*states(length), layer_idx=0)
    assert cache.layers[0].keys.data_ptr() == before


def test_selecting_rows_keeps_their_tokens_in_order():
    cache = growing_cache(1)
    keys, values = states(5, batch=4)
    cache.update(keys, values, layer_idx=0)
    cache.batch_select_indices(torch.tensor([2, 0]))
    more_keys, more_values = states(1, batch=2, seed=1)
    cache.update(more_keys, more_values, layer_idx=0)
    assert torch.equal(cache.layers[0].keys, torch.cat([keys[[2, 0]], more_keys], dim=2))


def test_reset_empties_the_cache_for_another_text():
    cache = growing_cache(1)
    cache.update(*states(5), layer_idx=0)
    cache.reset()
    cache.update(*states(2, seed=1), layer_idx=0)
    assert torch.equal(cache.layers[0].keys, states(2, seed=1)[0])


def test_a_model_computes_the_same_with_it_as_with_the_cache_of_transformers(tiny_target):
    ids = torch.randint(0, 250, (1, 40), generator=torch.Generator().manual_seed(0))
    ours, theirs = tiny_target.new_cache(), DynamicCache()
    for start, end in ((0, 20), (20, 28), (28, 40)):
        logits = tiny_target.forward(ids[:, start:end], ours).logits
        expected = tiny_target.forward(ids[:, start:end], theirs).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_rejected_tokens_leave_no_trace_in_later_logits(tiny_target):
    ids = torch.randint(0, 250, (1, 30), generator=torch.Generator().manual_seed(0))
    straight, winding = tiny_target.new_cache(), tiny_target.new_cache()
    tiny_target.forward(ids[:, :20], straight)
    tiny_target.forward(ids[:, :20], winding)
    tiny_target.forward(ids[:, 5:12], winding)  # a block that verification rejects
    winding.crop(-7)
    after = [tiny_target.forward(ids[:, 20:], cache).logits for cache in (straight, winding)]
    assert torch.equal(*after)
