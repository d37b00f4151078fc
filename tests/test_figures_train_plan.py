"""The figures of a planned run show the trainer's own schedule and the estimate's own parts."""

import pytest

from dflash.config import parse_config
from dflash.training.memory import MemoryPart
from dflash.training.schedule import corners, learning_rate
from workbench.figures.palette import DRAFT, TARGET
from workbench.figures.train_plan import learning_rate_curve, memory_bars, rate_points


def planned(steps: int, **schedule):
    config = parse_config({"data": {"train": ["a.jsonl"]}, "schedule": schedule, "run": {"max_steps": steps}}, "test")
    optimizer = config.optimizer
    return config, corners(steps, optimizer.lr, optimizer.min_lr, config.schedule)


@pytest.mark.parametrize("steps", [1, 2, 100, 100_000])
def test_the_curve_is_the_schedule_the_trainer_uses(steps):
    config, marks = planned(steps)
    points = rate_points(config, steps, marks)
    assert len(points) <= 310 and points[0][0] == 1 and points[-1][0] == steps
    for step, rate in points:
        assert rate == learning_rate(step - 1, steps, 6e-4, 6e-5, config.schedule)
    assert {mark.step for mark in marks} <= {step for step, _ in points}


def test_the_curve_marks_its_corners():
    config, marks = planned(1000)
    figure = learning_rate_curve(rate_points(config, 1000, marks), marks)
    line, points = figure.data
    assert list(points.x) == [1, 40, 801, 1000] and max(line.y) == 6e-4 and line.y[-1] == pytest.approx(6e-5)
    assert list(points.customdata) == ["first step", "end of warm-up", "start of decay", "last step"]
    assert figure.layout.title.text.endswith("?") and figure.layout.yaxis.title.text == "learning rate"


def test_memory_is_drawn_part_by_part_with_what_there_is():
    parts = [MemoryPart("target weights", 2**30), MemoryPart("activations", 3 * 2**30), MemoryPart("copy", 2**29, True)]
    figure = memory_bars(parts, "the training GPU", 80 * 2**30)
    (bars,) = figure.data
    assert list(bars.x) == [0.5, 1.0, 3.0] and list(bars.y) == ["copy", "target weights", "activations"]
    assert list(bars.marker.color) == [TARGET, DRAFT, DRAFT]
    assert list(bars.customdata) == ["host memory", "the training GPU", "the training GPU"]
    assert figure.layout.annotations[0].text == "4.0 of 80 GiB"
    assert "the training GPU" in figure.layout.title.text


def test_too_little_memory_is_seen():
    figure = memory_bars([MemoryPart("target weights", 2**31)], "this machine", 2**30)
    assert figure.layout.annotations[0].font.color == TARGET
    assert not memory_bars([MemoryPart("target weights", 2**31)], "this machine").layout.annotations
