"""What changes when a run goes on with other settings than it began with, said before anything is loaded."""

import math
from collections.abc import Iterator
from pathlib import Path

from dflash.config import TrainConfig, load_config
from dflash.errors import UserError
from dflash.training.estimate import steps_of
from dflash.training.schedule import learning_rate, phases


def resume_notes(run_dir: Path, config: TrainConfig, conversations: int | None) -> Iterator[str]:
    """Remarks on resuming the run in `run_dir` with `config`.

    `conversations`: how many there are at most to train on, where that is known; runs by epochs need it.
    """
    try:
        before = load_config(run_dir / "config.yaml")
    except UserError:
        return  # of an older version: what does not fit is complained about, and there is nothing to compare
    done = _steps_done(run_dir)
    was, now = (_steps(settings, conversations) for settings in (before, config))
    if not done or was is None or now is None or done >= now:
        return
    old, new = (_rate(settings, steps, done) for settings, steps in ((before, was), (config, now)))
    if math.isclose(old, new, rel_tol=1e-3) and was == now:
        return
    yield (
        f"The schedule was for {was:,} steps{_decay(before, was)} and is now for {now:,}{_decay(config, now)}: step "
        f"{done + 1:,}, with which the run goes on, has learning rate {new:.3g}; it {_former(old, done, was)}."
    )


def _former(rate: float, done: int, steps: int) -> str:
    return f"would have had {rate:.3g}" if done < steps else f"had come down to {rate:.3g}"


def _rate(config: TrainConfig, steps: int, done: int) -> float:
    optimizer = config.optimizer
    return learning_rate(min(done, steps - 1), steps, optimizer.lr, optimizer.min_lr, config.schedule)


def _decay(config: TrainConfig, steps: int) -> str:
    """Where the decay starts, in words; steps count from 1, as in the metrics."""
    start = phases(steps, config.schedule)[1]
    return f" with the decay from step {int(start) + 1:,} on" if start < steps else ""


def _steps(config: TrainConfig, conversations: int | None) -> int | None:
    return config.run.max_steps or steps_of(config.run.epochs, conversations, config.run.batch_size)


def _steps_done(run_dir: Path) -> int:
    names = (path.name.removeprefix("step_") for path in (run_dir / "checkpoints").glob("step_*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)
