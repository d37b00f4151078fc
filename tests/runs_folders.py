"""Run folders as the trainer leaves them, made without training."""

import json
import math
import random
import time
from pathlib import Path

from tiny_runs import tiny_config

from dflash.training.run_folder import RunFolder


def write_run(
    root: Path, name: str, *, steps: int = 40, state: str = "finished", age: float = 0.0, online: bool = False, **sections
) -> RunFolder:
    """A run of `steps` recorded steps with a validation every tenth and a decoding every twentieth of them.

    `age` is how many seconds ago it began; `online`: its features come from servers; `sections` replace settings of its config.
    """
    config = tiny_config("tiny", "conversations.jsonl", **sections)
    run = RunFolder.create(root / name, config)
    write_metrics(run, steps, online=online)
    if state == "running":
        run.set_status("running", step=steps, max_steps=2 * steps)
    else:
        run.set_status(state, step=steps)
    lines = [f"INFO Training from step 0 to {steps}.", "INFO Checkpoint step_0000020 is complete."]
    (run.path / "log.txt").write_text("".join(line + "\n" for line in lines))
    began = time.time() - age
    about = json.loads((run.path / "environment.json").read_text())
    (run.path / "environment.json").write_text(json.dumps({**about, "started": began}))
    return run


def write_metrics(run: RunFolder, steps: int, first: int = 1, *, online: bool = False) -> None:
    """Records of steps first..steps, in one go: a hundred thousand take a second."""
    draw = random.Random(first)
    with open(run.metrics_file, "a", encoding="utf-8") as file:
        for step in range(first, steps + 1):
            for record in _records(step, steps, draw, online):
                file.write(json.dumps(record) + "\n")


def _records(step: int, steps: int, draw: random.Random, online: bool):
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
    if online:
        speed["online"] = pipeline_part(step, draw)
    yield {**where, "kind": "train", **setting, "loss": loss, **slots, "tau_estimate": 3 - loss / 4, **speed}
    if step % max(1, steps // 10) == 0:
        yield {**where, "kind": "validation", "loss": loss + 0.3, **slots, "tau_estimate": 2.5 - loss / 4}
    if step % max(1, steps // 20) == 0:
        yield {**where, "kind": "decode", "decoded_tau": 2.2 - loss / 4, "decoded_steps": 50}


def pipeline_part(step: int, draw: random.Random) -> dict:
    """What a step of an online run records beside the rest: two ranks, two servers of a GPU each, a store of 20 GB."""
    server = {"gpus": 1, "busy_percent": 80 + 15 * draw.random(), "requests": 12.0, "resting_ranks": 0}
    return {
        "ranks": 2, "seconds": 10.0, "documents": 300 * step, "tokens": 300_000 * step, "bytes": 12e9 * step,
        "in_flight": 24 + draw.randrange(8), "in_flight_limit": 32, "queued": draw.randrange(6),
        "ready": 10 + draw.randrange(12), "retries": 0, "store_full": 0, "last_trouble": None,
        "tokens_per_s": 28_000 + 4_000 * draw.random(), "bytes_per_s": 1.1e9 + 2e8 * draw.random(),
        "wait_percent": 4 * draw.random(), "read_percent": 30 + 10 * draw.random(),
        "store_used_bytes": int(4e9 + 2e9 * draw.random()), "store_capacity_bytes": 20_000_000_000,
        "servers": [{"address": f"http://10.0.0.{number}:30000", **server} for number in (1, 2)],
    }  # fmt: skip
