"""Curves of runs: what is in them, that no peak is lost, and that figures and live page draw the same."""

import json
import math
import random

import numpy as np
import pytest

from runs_folders import pipeline_part

from workbench.curves import PANELS, SLOTS, curves, slot_profile
from workbench.decimate import thin
from workbench.figures.palette import DRAFT, RUNS, TARGET, along_the_block
from workbench.figures.training import (
    data_wait,
    learning_rate,
    loss_curves,
    over_steps,
    slot_accuracy,
    slot_profile_figure,
    tau_over_steps,
    tokens_per_second,
)
from workbench.run_series import RunSeries
from workbench.run_views import curves_view


def train(step: int, **values) -> dict:
    where = {"step": step, "batch": step, "kind": "train", "skipped": False}
    record = where | {"loss": 5 - step / 10, "tau_estimate": 1.5}
    speed = {"lr": 1e-3, "grad_norm": 2.0, "tokens_per_s": 100.0, "data_wait_percent": 3.0, "memory_gib": 1.5}
    slots = {"slot_accuracy": [0.5, 0.25], "slot_count": [40.0, 40.0]}
    return record | speed | slots | values


@pytest.fixture
def run() -> RunSeries:
    records = [train(step) for step in (1, 2, 3, 4)]
    for step in (2, 4):
        slots = {"slot_accuracy": [0.1 * step, 0.05 * step], "slot_count": [100.0, 80.0]}
        records.append({"step": step, "kind": "validation", "loss": 4.0, "tau_estimate": 1.0 + step / 10, **slots})
    records.append({"step": 4, "kind": "decode", "decoded_tau": 1.2})
    return RunSeries("one", records)


def traces(figure) -> dict[str, tuple[list, list]]:
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}


def test_loss_is_drawn_of_training_and_of_held_out_rows(run):
    drawn = traces(loss_curves(run))
    assert drawn["training"] == ([1, 2, 3, 4], pytest.approx([4.9, 4.8, 4.7, 4.6]))
    assert drawn["held out"] == ([2, 4], [4.0, 4.0])


def test_tau_is_drawn_estimated_and_decoded(run):
    drawn = traces(tau_over_steps(run))
    assert drawn["estimated, training"][1] == [1.5] * 4
    assert drawn["estimated, held out"] == ([2, 4], pytest.approx([1.2, 1.4]))
    assert drawn["decoded"] == ([4], [1.2])


def test_every_slot_has_a_line_of_held_out_accuracy_in_percent(run):
    figure = slot_accuracy(run)
    assert traces(figure) == {"slot 1": ([2, 4], pytest.approx([20, 40])), "slot 2": ([2, 4], pytest.approx([10, 20]))}
    assert [trace.line.color for trace in figure.data] == [DRAFT, TARGET]


def test_without_two_validations_the_slots_are_those_of_training():
    lone = RunSeries("one", [train(1), train(2)])
    assert traces(slot_accuracy(lone))["slot 1"] == ([1, 2], [50, 50])


def test_the_profile_counts_tokens_and_has_their_intervals(run):
    shares = slot_profile(run)
    assert [(share.hits, share.total) for share in shares] == [(40, 100), (16, 80)]
    (trace,) = slot_profile_figure(run).data
    assert list(trace.y) == pytest.approx([40, 20])
    low, high = shares[0].interval
    assert trace.error_y.array[0] == pytest.approx(100 * (high - 0.4))
    assert trace.error_y.arrayminus[0] == pytest.approx(100 * (0.4 - low))
    assert trace.customdata[1] == [16, 80]


def test_a_slot_without_a_number_keeps_its_place():
    record = {"step": 1, "kind": "validation", "slot_accuracy": [0.5, None, 0.25], "slot_count": [4, 0, 4]}
    assert [(share.hits, share.total) for share in slot_profile(RunSeries("one", [record]))] == [(2, 4), (0, 0), (1, 4)]


@pytest.mark.parametrize(
    ("draw", "value"),
    [(learning_rate, 1e-3), (tokens_per_second, 100.0), (data_wait, 3.0)],
    ids=["lr", "speed", "wait"],
)
def test_settings_and_speed_are_drawn_over_steps(run, draw, value):
    (trace,) = draw(run).data
    assert list(trace.x) == [1, 2, 3, 4] and list(trace.y) == [value] * 4


def test_runs_over_one_another_are_named_and_coloured(run):
    other = RunSeries("two", [train(7)])
    figure = loss_curves(run, other)
    names = [trace.name for trace in figure.data]
    assert names == ["one, training", "one, held out", "two, training"]
    assert figure.data[2].line.color == RUNS[1]


def test_slots_beside_other_runs_are_named_after_the_first_in_shades_of_its_colour(run):
    figure = over_steps(SLOTS, [run, RunSeries("two", [train(7)])])
    assert figure.layout.title.text.startswith("Which slots does one get right?")
    assert all(trace.name.startswith("one, slot ") for trace in figure.data)
    colours = [trace.line.color for trace in figure.data]
    assert colours[0] == RUNS[0] and len(set(colours)) == len(colours) and not set(colours) & {RUNS[1], TARGET}


def test_every_chart_asks_a_question_and_names_its_unit(run):
    for panel in (*PANELS, SLOTS):
        figure = over_steps(panel, [run])
        assert figure.layout.title.text.endswith("?")
        assert figure.layout.yaxis.title.text == panel.unit and figure.layout.xaxis.title.text == "step"


def test_nothing_recorded_is_an_empty_chart_and_no_error():
    empty = RunSeries("none")
    assert len(loss_curves(empty).data) == len(loss_curves().data) == 0
    assert list(slot_profile_figure(empty).data[0].y) == []
    assert curves_view([empty])["panels"] == [] and curves_view([empty])["span"] is None


def test_skipped_steps_and_missing_numbers_leave_gaps_not_zeros():
    skipped = {"step": 4, "kind": "train", "skipped": True}
    series = RunSeries("one", [train(1), train(2, loss=float("nan")), train(3, loss=None), skipped, train(5)])
    assert traces(loss_curves(series))["training"][0] == [1, 5]
    assert series.skipped == [4]
    assert list(series.column("train", "lr")[0]) == [1, 2, 3, 5]


def test_a_column_that_begins_late_begins_at_its_own_step():
    series = RunSeries("one", [train(1), train(2)])
    series.extend([train(3, online={"ready": 4, "in_flight": 2}), train(4)])
    x, y = series.column("train", "online.ready")
    assert (list(x), list(y)) == ([3], [4])


def test_a_pipelines_queues_servers_store_and_traffic_are_shown_in_units_that_are_read_easily():
    parts = [pipeline_part(step, random.Random(step)) for step in (1, 2, 3)]
    view = curves_view([RunSeries("one", [train(step, online=part) for step, part in enumerate(parts, 1)])])
    panels = {panel["key"]: panel for panel in view["panels"]}
    drawn = {
        (key, curve["label"]): curve["y"]
        for key in ("online", "served", "store", "moved")
        for curve in panels[key]["curves"]
    }
    assert drawn == {
        ("online", "at the servers"): [part["in_flight"] for part in parts],
        ("online", "queued"): [part["queued"] for part in parts],
        ("online", "ready"): [part["ready"] for part in parts],
        ("served", "served"): pytest.approx([part["tokens_per_s"] for part in parts], rel=1e-4),
        ("store", "used"): pytest.approx([part["store_used_bytes"] / 1e9 for part in parts], rel=1e-4),
        ("store", "lent by the servers"): [20, 20, 20],
        ("moved", "read"): pytest.approx([part["bytes_per_s"] / 1e9 for part in parts], rel=1e-4),
    }
    assert [panels[key]["unit"] for key in ("online", "served", "store", "moved")] == [
        "documents", "tokens/s", "GB", "GB/s"
    ]  # fmt: skip
    styles = [curve["style"] for curve in panels["online"]["curves"]]
    assert len(set(styles)) == 3  # of one colour, as they are of one run


def test_a_small_stores_bytes_are_shown_as_megabytes_in_figures_too():
    panel = next(panel for panel in PANELS if panel.key == "store")
    small = {"store_used_bytes": 3_000_000, "store_capacity_bytes": 64_000_000}
    figure = over_steps(panel, [RunSeries("one", [train(1, online=small), train(2, online=small)])])
    assert traces(figure) == {"used": ([1, 2], [3, 3]), "lent by the servers": ([1, 2], [64, 64])}
    assert figure.layout.yaxis.title.text == "MB"
    large = {"store_used_bytes": 2_000_000_000}
    figure = over_steps(panel, [RunSeries("one", [train(1, online=large)])])
    assert traces(figure) == {"used": ([1], [2])} and figure.layout.yaxis.title.text == "GB"


def test_a_run_without_servers_has_no_charts_of_a_pipeline(run):
    shown = {panel["key"] for panel in curves_view([run])["panels"]}
    assert "wait" in shown and not shown & {"online", "served", "store", "moved"}


def test_thinning_keeps_every_peak_and_the_mean():
    x = np.arange(100_000.0)
    y = np.sin(x / 5_000)
    y[41_234], y[77_777] = 50, -50
    thinned = thin(x, y, 300)
    assert len(thinned.x) == 300
    assert thinned.high.max() == 50 and thinned.low.min() == -50
    assert np.average(thinned.y) == pytest.approx(y.mean(), abs=1e-3)
    assert (thinned.low <= thinned.y).all() and (thinned.y <= thinned.high).all()
    assert (np.diff(thinned.x) > 0).all()


def test_few_points_are_left_as_they_are():
    x = np.array([1.0, 5.0, 9.0])
    thinned = thin(x, x * 2, 300)
    assert list(thinned.x) == [1, 5, 9] and thinned.low is None


def test_a_span_keeps_one_neighbour_on_each_side():
    x = np.arange(10.0)
    assert list(thin(x, x, 300, (3.5, 5.5)).x) == [3, 4, 5, 6]
    assert list(thin(x, x, 300, (-5, 0.5)).x) == [0, 1]
    assert list(thin(x, x, 300, (20, 30)).x) == [9]


def test_zooming_in_shows_what_the_whole_run_had_thinned_out():
    series = RunSeries("one", [train(step, loss=float(step % 7)) for step in range(1, 2_001)])
    (whole,) = curves(PANELS[0], [series], 100)
    (part,) = curves(PANELS[0], [series], 100, (500, 520))
    assert len(whole.points.x) == 100
    assert list(part.points.x) == list(range(499, 522)) and part.points.low is None


def test_the_live_page_gets_the_same_curves_as_plain_numbers(run):
    view = curves_view([run, RunSeries("two", [train(9)])])
    loss = next(panel for panel in view["panels"] if panel["key"] == "loss")
    drawn = [(curve["run"], curve["label"]) for curve in loss["curves"]]
    assert drawn == [(0, "training"), (0, "held out"), (1, "training")]
    assert loss["curves"][0]["y"] == pytest.approx([4.9, 4.8, 4.7, 4.6])
    assert view["span"] == [1, 9]
    assert [run["name"] for run in view["runs"]] == ["one", "two"]
    assert not any(isinstance(value, float) and math.isnan(value) for value in _numbers(json.loads(json.dumps(view))))


def test_colours_along_the_block_go_from_draft_to_target():
    assert along_the_block(1, 15) == DRAFT and along_the_block(15, 15) == TARGET
    assert along_the_block(1, 1) == DRAFT
    assert len({along_the_block(slot, 15) for slot in range(1, 16)}) == 15


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _numbers(entry)
    else:
        yield value
