"""The GPUs of this machine, and who gets which of them."""

import os
from collections.abc import Mapping
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Their names as CUDA_VISIBLE_DEVICES would list them; where it is not set, "0" and so on, as the driver counts."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(name.strip() for name in listed.split(",") if name.strip() not in ("", "-1"))
    count = sum(1 for _ in _DRIVER.iterdir()) if _DRIVER.is_dir() else 0
    return tuple(map(str, range(count)))


def split(
    gpus: tuple[str, ...], servers: int, each: int, trainers: int
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """The first GPUs for the servers, `each` per server, the next ones for the trainers.

    Where there are not enough the rest is numbered on: for plans, whose machine is another one.
    """
    needed = servers * each + trainers
    gpus = gpus if len(gpus) >= needed else tuple(map(str, range(needed)))
    serving = [gpus[number * each : (number + 1) * each] for number in range(servers)]
    return serving, gpus[servers * each : needed]
