"""The acceptance figures draw the counts they are given."""

import pytest

from dflash.evaluation.acceptance import AcceptanceCounts
from workbench.figures.acceptance import accepted_per_step, survival_by_slot

COUNTS = AcceptanceCounts((4, 3, 0, 1))


def test_bars_are_the_histogram_itself():
    bars = accepted_per_step(COUNTS).data[0]
    assert list(bars.x) == [0, 1, 2, 3]
    assert list(bars.y) == [4, 3, 0, 1]


def test_survival_shows_cumulative_and_conditional_acceptance_in_percent():
    conditional, cumulative = survival_by_slot(COUNTS).data
    assert list(cumulative.x) == [1, 2, 3]
    assert list(cumulative.y) == pytest.approx([50, 12.5, 12.5])
    assert list(conditional.y) == pytest.approx([50, 25, 100])
    assert [tuple(cell) for cell in conditional.customdata] == [(4, 8), (1, 4), (1, 1)]


def test_a_slot_that_no_step_reached_has_no_point():
    conditional, cumulative = survival_by_slot(AcceptanceCounts((5, 0, 0))).data
    assert list(cumulative.y) == [0, 0]
    assert list(conditional.y) == [0, None]


@pytest.mark.parametrize("figure", [accepted_per_step(COUNTS), survival_by_slot(COUNTS)])
def test_titles_ask_a_question_and_axes_are_named(figure):
    assert figure.layout.title.text.endswith("?")
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
