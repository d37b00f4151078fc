"""Run folders as the trainer leaves them, made without training."""

import json
import math
import os
import random
import time
from pathlib import Path

from tiny_runs import tiny_config

from dflash.training.run_folder import RunFolder


def write_run(
    root: Path, name: str, *, steps: int = 40, state: str = "finished", age: float = 0.0, **sections
) -> RunFolder:
    """A run of `steps` recorded steps with a validation every tenth and a decoding every twentieth of them.

    `age` is how many seconds ago it began; `sections` replace settings of its config.
    """
    config = tiny_config("tiny", "conversations.jsonl", **sections)
    run = RunFolder.create(root / name, config)
    write_metrics(run, steps)
    if state == "running":
        run.set_status("running", step=steps, max_steps=2 * steps)
    else:
        run.set_status(state, step=steps)
    lines = [f"INFO Training from step 0 to {steps}.", "INFO Checkpoint step_0000020 is complete."]
    (run.path / "log.txt").write_text("".join(line + "\n" for line in lines))
    began = time.time() - age
    os.utime(run.path / "environment.json", (began, began))
    return run


def write_metrics(run: RunFolder, steps: int, first: int = 1) -> None:
    """Records of steps first..steps, in one go: a hundred thousand take a second."""
    draw = random.Random(first)
    with open(run.metrics_file, "a", encoding="utf-8") as file:
        for step in range(first, steps + 1):
            for record in _records(step, steps, draw):
                file.write(json.dumps(record) + "\n")


def _records(step: int, steps: int, draw: random.Random):
    loss = 2 + 3 * math.exp(-5 * step / steps) + 0.2 * draw.random()
    where = {"step": step, "batch": step}
    slots = {
        "slot_loss": [loss] * 3,
        "slot_accuracy": [0.6 - loss / 20, 0.4 - loss / 20, 0.3 - loss / 20],
        "slot_prefix": [0.5, 0.3, 0.1],
        "slot_count": [512.0, 509.0, 505.0],
    }
    pace = {"tokens": 100, "tokens_per_s": 900 + 100 * draw.random()}
    speed = {**pace, "data_wait_percent": draw.random(), "memory_gib": 1.5}
    setting = {"lr": 1e-3 * (1 - step / (steps + 1)), "grad_norm": 0.5 + draw.random(), "skipped": False}
    yield {**where, "kind": "train", **setting, "loss": loss, **slots, "tau_estimate": 3 - loss / 4, **speed}
    if step % max(1, steps // 10) == 0:
        yield {**where, "kind": "validation", "loss": loss + 0.3, **slots, "tau_estimate": 2.5 - loss / 4}
    if step % max(1, steps // 20) == 0:
        yield {**where, "kind": "decode", "decoded_tau": 2.2 - loss / 4, "decoded_steps": 50}
