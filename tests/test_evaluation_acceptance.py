"""Acceptance figures follow from counts by the contract's formulas."""

import json

import pytest

from dflash.errors import UserError
from dflash.evaluation.acceptance import AcceptanceCounts, Proportion


def test_acceptance_and_tau_follow_from_the_histogram():
    counts = AcceptanceCounts((2, 1, 0, 5))
    assert counts.steps == 8
    assert [c.value for c in counts.cumulative] == [6 / 8, 5 / 8, 5 / 8]
    assert [(a.hits, a.total) for a in counts.conditional] == [(6, 8), (5, 6), (5, 5)]
    assert counts.tau == 1 + 6 / 8 + 5 / 8 + 5 / 8 == 1 + (1 * 1 + 5 * 3) / 8


def test_pooling_adds_counts_not_rates():
    few, many = AcceptanceCounts((0, 2)), AcceptanceCounts((90, 10))
    assert (few + many).cumulative[0].value == 12 / 102
    assert AcceptanceCounts.pooled([(0, 2), (90, 10)]) == few + many
    with pytest.raises(UserError, match="block size"):
        few + AcceptanceCounts((1, 1, 1))


def test_wilson_intervals_match_published_values():
    # 8 of 10: 0.4902 to 0.9433 (Wilson score, 95 %, without continuity correction).
    assert Proportion(8, 10).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = Proportion(10, 10).interval
    assert high == pytest.approx(1.0) and high <= 1.0 and 0.7 < low < 0.73
    assert Proportion(0, 0).value is None and Proportion(0, 0).interval is None


def test_positions_never_reached_have_counts_but_no_rate():
    record = json.loads(json.dumps(AcceptanceCounts((3, 0, 0)).to_dict()))
    assert record["tau_uncut"] == 1.0
    assert record["conditional"][1] == {"position": 2, "hits": 0, "total": 0, "value": None, "interval_95": None}
    assert AcceptanceCounts((0, 0)).tau is None


@pytest.mark.parametrize("histogram", [(), (3,), (1, -1)])
def test_impossible_histograms_are_refused(histogram):
    with pytest.raises(UserError, match="histogram"):
        AcceptanceCounts(histogram)


def test_shorter_blocks_are_read_off_the_counts_of_longer_ones():
    counts = AcceptanceCounts((4, 3, 0, 1))
    assert counts.shortened(4) == counts
    assert counts.shortened(3) == AcceptanceCounts((4, 3, 1))
    assert counts.shortened(2) == AcceptanceCounts((4, 4))
    assert counts.shortened(3).tau == 1 + sum(p.value for p in counts.cumulative[:2])
    for size in (1, 5):
        with pytest.raises(UserError, match="2 to 4"):
            counts.shortened(size)
