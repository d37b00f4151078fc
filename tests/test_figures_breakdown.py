"""The figures of the Acceptance page draw the estimates they are given, and ask a question each."""

import pytest

from dflash.evaluation.acceptance import AcceptanceCounts, Proportion
from dflash.evaluation.block_sizes_file import SizeRow
from dflash.evaluation.breakdown import Estimate
from dflash.evaluation.speedup import StepCost
from workbench.figures.acceptance import survival_by_slot
from workbench.figures.breakdown import (
    acceptance_by_entropy,
    tau_by_group,
    tau_by_place,
    tau_distribution,
    tau_over_results,
    tau_pairs,
)
from workbench.figures.whatif import Dot, iso_speedup, speed_by_block_size, step_costs

GROUPS = {"math": Estimate(2.5, (2.0, 3.1), 4, 100), "<b>": Estimate(1.5, None, 1, 20)}
NOTHING = Estimate(None, None, 0, 0)
COST = StepCost(20, 4, 25, 1)
ROWS = (SizeRow(2, StepCost(20, 2, 21, 1), 30, 1.5, 1.2, (1.0, 1.4)), SizeRow(4, COST, 20, 3.0, 1.9, (1.5, 2.2)))


def test_groups_are_dots_with_their_intervals_the_first_on_top():
    figure = tau_by_group(GROUPS, "category")
    dots = figure.data[0]
    assert list(dots.x) == [2.5, 1.5]
    assert list(figure.layout.yaxis.ticktext) == ["math", "&lt;b&gt;"], "a name like markup must not become some"
    assert list(dots.y) == list(figure.layout.yaxis.tickvals) == [0, 1]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the first one on top"
    assert list(dots.error_x.array) == pytest.approx([0.6, 0])
    assert list(dots.error_x.arrayminus) == pytest.approx([0.5, 0])
    assert "100 steps of 4 prompts" in dots.customdata[0][0]


def test_places_where_nothing_began_have_no_dot():
    line = tau_by_place([GROUPS["math"], NOTHING, GROUPS["<b>"]], [1, 9, 17, 33]).data[0]
    assert list(line.x) == ["1–8", "17–32"]
    assert list(line.y) == [2.5, 1.5]


def test_entropy_shows_acceptance_and_how_many_guesses_lie_there():
    figure = acceptance_by_entropy([Proportion(8, 10), Proportion(0, 0), Proportion(3, 30)], [0, 1, 2, float("inf")])
    share, accepted = figure.data
    assert list(accepted.x) == ["0–1", "1–2", "over 2"]
    assert list(accepted.y) == pytest.approx([80, None, 10])
    assert list(share.y) == pytest.approx([25, 0, 75])


def test_the_distribution_counts_answers_in_quarters_of_a_token():
    bars = tau_distribution([1.0, 1.2, 1.25, 2.0]).data[0]
    assert list(bars.y) == [2, 1, 0, 0, 1]
    assert list(bars.x)[0] == 1.125


def test_results_keep_their_order_and_pairs_fall_on_their_side():
    assert list(tau_over_results({"b": GROUPS["math"], "a": GROUPS["<b>"]}).layout.yaxis.ticktext) == ["b", "a"]
    diagonal, second, first = tau_pairs([("p", 1.5, 2.0), ("q", 2.0, 1.5), ("r", 2.0, 2.0)], "one", "two").data
    assert list(second.x) == [1.5, 2.0] and list(second.y) == [2.0, 2.0]
    assert list(first.x) == [2.0] and list(first.y) == [1.5]
    assert list(diagonal.x) == list(diagonal.y)


def test_long_names_that_begin_alike_stay_apart():
    run = "smollm2-135m-quick-20261123-101500"
    first, second = names = [f"{run}/step_0000500-1123-140000", f"{run}/step_0001000-1123-141500"]
    estimates = dict.fromkeys(names, GROUPS["math"])
    over, groups = tau_over_results(estimates), tau_by_group(estimates, "prompt set")
    pairs = tau_pairs([("p", 1.5, 2.0)], first, second).layout
    for figure in (over, groups):
        shown = figure.layout.yaxis.ticktext
        assert len(set(figure.data[0].y)) == len(set(shown)) == 2
        assert shown[0] == "smollm2…<br>_0000500-1123-140000"
    assert pairs.xaxis.title.text.endswith("0000500-1123-140000") and pairs.yaxis.title.text.endswith("141500")


def test_lines_of_equal_speedup_hold_their_speedup_everywhere():
    figure = iso_speedup(Dot("what if", COST, 3.0), [Dot("measured", COST, 2.4, 1.5)])
    lines = [trace for trace in figure.data if trace.mode == "lines+text"]
    assert len(lines) >= 3
    for line in lines:
        speedup = float(line.text[1].rstrip("×"))
        assert [y / x for x, y in zip(line.x, line.y, strict=True)] == pytest.approx([speedup] * 2)
    supposed, measured = figure.data[-1], figure.data[-2]
    assert (supposed.x[0], supposed.y[0]) == (1.5, 3.0) and "2.00×" in supposed.customdata[0][0]
    assert (measured.x[0], measured.y[0]) == (1.5, 2.4) and "measured 1.50×" in measured.customdata[0][0]


def test_block_sizes_show_measured_and_expected_speed_and_their_parts():
    expected, measured = speed_by_block_size(ROWS).data
    assert list(measured.y) == [1.2, 1.9] and list(measured.error_y.arrayminus) == pytest.approx([0.2, 0.4])
    assert list(expected.y) == pytest.approx([1.25, 2.0])
    verify, draft, overhead, alone = step_costs(ROWS).data
    assert [list(bar.y) for bar in (verify, draft, overhead)] == [[21, 25], [2, 4], [1, 1]]
    assert set(alone.y) == {20}


def test_decay_weights_are_drawn_over_survival_in_percent():
    weights, conditional, cumulative = survival_by_slot(AcceptanceCounts((4, 3, 1)), [1.0, 0.5]).data
    assert list(weights.y) == [100, 50] and list(weights.x) == [1, 2]
    assert len(cumulative.x) == len(conditional.x) == 2


@pytest.mark.parametrize(
    "figure",
    [
        tau_by_group(GROUPS, "language"),
        tau_by_place([GROUPS["math"]], [1, 9]),
        acceptance_by_entropy([Proportion(1, 2)], [0, 1]),
        tau_distribution([]),
        tau_over_results(GROUPS),
        tau_pairs([], "one", "two"),
        iso_speedup(Dot("x", COST, 1.0)),
        speed_by_block_size(ROWS),
        step_costs(ROWS),
    ],
)
def test_titles_ask_a_question_and_an_axis_is_named(figure):
    assert figure.layout.title.text.endswith("?")
    assert figure.layout.yaxis.title.text or figure.layout.xaxis.title.text
