"""The order of rows: every row once per epoch, any position on demand, similar lengths within a step if asked for."""

import random

import pytest

from dflash.data.sampler import ShuffledSampler

LENGTHS = random.Random(4).choices(range(5, 500), k=103)
STEP = 8


def grouped(seed: int = 1) -> ShuffledSampler:
    return ShuffledSampler(len(LENGTHS), seed, lengths=LENGTHS, rows_per_step=STEP)


def plain(seed: int = 1) -> ShuffledSampler:
    return ShuffledSampler(len(LENGTHS), seed)


@pytest.mark.parametrize("make", [plain, grouped])
def test_every_row_comes_exactly_once_per_epoch_and_epochs_differ(make):
    sampler, size = make(), len(LENGTHS)
    epochs = [[sampler[epoch * size + i] for i in range(size)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("make", [plain, grouped])
def test_any_position_is_the_same_in_any_order_of_asking(make):
    forwards = [make()[i] for i in range(300)]
    sampler = make()
    assert [sampler[i] for i in reversed(range(300))] == forwards[::-1]
    assert [make(2)[i] for i in range(300)] != forwards, "the seed decides"


def test_rows_of_a_step_have_similar_lengths_even_after_an_epoch_that_ended_within_a_step():
    def spread(sampler) -> float:
        steps = [[LENGTHS[sampler[s * STEP + i]] for i in range(STEP)] for s in range(3 * len(LENGTHS) // STEP)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread(grouped()) < 0.3 * spread(plain())


def test_steps_are_not_ordered_by_length():
    sampler = grouped()
    firsts = [LENGTHS[sampler[s * STEP]] for s in range(12)]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_fewer_rows_than_a_step_still_come_once_per_epoch(size):
    sampler = ShuffledSampler(size, 0, lengths=list(range(size)), rows_per_step=STEP)
    for epoch in range(5):
        assert sorted(sampler[epoch * size + i] for i in range(size)) == list(range(size))


def test_grouping_without_a_length_for_every_row_is_refused():
    with pytest.raises(ValueError, match="one length for each"):
        ShuffledSampler(3, 0, lengths=[1, 2], rows_per_step=2)
    with pytest.raises(ValueError, match="rows_per_step"):
        ShuffledSampler(2, 0, lengths=[1, 2])
