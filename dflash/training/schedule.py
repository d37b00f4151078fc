"""Learning-rate schedules as one pure function of the step, used by the trainer and drawn by the workbench."""

import math

from dflash.config import ScheduleConfig


def learning_rate(step: int, max_steps: int, peak: float, floor: float, schedule: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) out of `max_steps`.

    Warm-up rises linearly and reaches `peak` on its last step. WSD then holds `peak` and falls to `floor` over the last
    `decay_ratio` of all steps; cosine and linear fall all the way; constant holds.
    """
    warmup = round(schedule.warmup_ratio * max_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        start, style = max(warmup, max_steps - round(schedule.decay_ratio * max_steps)), schedule.decay_style
    else:
        start, style = warmup, schedule.kind
    if step < start:
        return peak
    # The first decaying step is already below the peak and the last one (max_steps - 1) lies at the floor.
    progress = min(1.0, (step - start + 1) / max(1, max_steps - start))
    fallen = {
        "linear": progress,
        "cosine": 0.5 * (1 - math.cos(math.pi * progress)),
        "sqrt": math.sqrt(progress),
    }[style]
    return peak + (floor - peak) * fallen
