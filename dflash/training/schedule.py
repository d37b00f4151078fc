"""Learning-rate schedules as one pure function of the step, used by the trainer and drawn by the workbench."""

import math
from dataclasses import dataclass

from dflash.config import ScheduleConfig


def learning_rate(step: int, max_steps: int, peak: float, floor: float, schedule: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) out of `max_steps`.

    Warm-up rises linearly and reaches `peak` on its last step. WSD then holds `peak` and falls to `floor` over the last
    `decay_ratio` of all steps; cosine and linear fall all the way; constant holds.
    """
    warmup, start = phases(max_steps, schedule)
    if step < warmup:
        return peak * (step + 1) / warmup
    if step < start:
        return peak
    style = schedule.decay_style if schedule.kind == "wsd" else schedule.kind
    # The first decaying step is already below the peak and the last one (max_steps - 1) lies at the floor.
    progress = min(1.0, (step - start + 1) / max(1, max_steps - start))
    fallen = {
        "linear": progress,
        "cosine": 0.5 * (1 - math.cos(math.pi * progress)),
        "sqrt": math.sqrt(progress),
    }[style]
    return peak + (floor - peak) * fallen


def phases(max_steps: int, schedule: ScheduleConfig) -> tuple[int, float]:
    """Number of warm-up steps, and the 0-based step with which the decay starts (infinite where there is none)."""
    warmup = round(schedule.warmup_ratio * max_steps)
    if schedule.kind == "constant":
        return warmup, math.inf
    if schedule.kind == "wsd":
        return warmup, max(warmup, max_steps - round(schedule.decay_ratio * max_steps))
    return warmup, warmup


@dataclass(frozen=True)
class RatePoint:
    """A corner of the learning-rate curve. `step` counts from 1, as in the metrics."""

    name: str
    step: int
    rate: float


def corners(max_steps: int, peak: float, floor: float, schedule: ScheduleConfig) -> tuple[RatePoint, ...]:
    """First step, last step of the warm-up, first step of the decay and last step of the run, where they exist."""
    warmup, start = phases(max_steps, schedule)
    steps = {"first step": 0, "end of warm-up": warmup - 1, "start of decay": start, "last step": max_steps - 1}
    return tuple(
        RatePoint(name, step + 1, learning_rate(step, max_steps, peak, floor, schedule))
        for name, step in steps.items()
        if 0 <= step < max_steps
    )
