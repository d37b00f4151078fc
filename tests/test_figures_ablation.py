"""The ablation figures draw the measures they are given, with their intervals and single runs."""

import pytest

from workbench.figures.ablation import Measured, measure_by_setting, measure_by_two_settings
from workbench.figures.palette import DRAFT, TARGET

POINTS = [
    Measured("8", 1.10, 1.05, 1.20, (1.08, 1.12), "n = 40 conversations"),
    Measured("32", 1.30, 1.25, 1.33, (1.30,)),
]


def test_marks_and_their_intervals_are_the_measures():
    runs, marks = measure_by_setting(POINTS, "More?", setting="anchors", measure="tau").data
    assert list(marks.x) == ["8", "32"]
    assert list(marks.y) == [1.10, 1.30]
    assert list(marks.error_y.array) == pytest.approx([0.10, 0.03])
    assert list(marks.error_y.arrayminus) == pytest.approx([0.05, 0.05])
    assert list(zip(runs.x, runs.y, strict=True)) == [("8", 1.08), ("8", 1.12), ("32", 1.30)]
    assert "n = 40 conversations" in marks.customdata[0]


def test_only_the_baseline_stands_out():
    figure = measure_by_setting(POINTS, "More?", setting="anchors", measure="tau", baseline="32")
    assert list(figure.data[1].marker.color) == [DRAFT, TARGET]
    assert [line.y0 for line in figure.layout.shapes] == [1.30]
    without = measure_by_setting(POINTS, "More?", setting="anchors", measure="tau")
    assert set(without.data[1].marker.color) == {DRAFT} and not without.layout.shapes


def test_values_keep_their_order_and_are_no_numbers_on_a_scale():
    axis = measure_by_setting(POINTS, "More?", setting="anchors", measure="tau").layout.xaxis
    assert axis.type == "category" and list(axis.categoryarray) == ["8", "32"]


def test_each_pair_of_settings_has_its_cell_and_a_missing_one_is_empty():
    figure = measure_by_two_settings(
        [[POINTS[0], POINTS[1]], [None, POINTS[0]]],
        "Same?",
        row_labels=["4", "8"],
        column_labels=["4", "8"],
        rows="trained",
        columns="used",
        measure="tau",
    )
    (cells,) = figure.data
    assert [list(row) for row in cells.z] == [[1.10, 1.30], [None, 1.10]]
    assert cells.text[0][0].startswith("1.100") and "[1.050, 1.200]" in cells.text[0][0]
    assert cells.text[1][0] == ""
    assert (cells.zmin, cells.zmax) == (1.05, 1.33)  # the intervals' span: within it cells look alike
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("used", "trained")


def test_labels_cannot_become_markup():
    figure = measure_by_setting([Measured("<b>", 1, 1, 1)], "More?", setting="x", measure="y")
    assert figure.data[1].x[0] == "&lt;b&gt;"
