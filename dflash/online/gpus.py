"""The GPUs of this machine, and who gets which of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def gpus_of_server(info: Mapping[str, Any]) -> int:
    """How many a running SGLang server computes on, as its `server_info` tells; 0 where it runs on the CPU."""
    if info.get("device") != "cuda":
        return 0
    # Attention's data parallelism divides the tensor-parallel GPUs; before 0.5.23 `dp_size` is its width then.
    replicas = 1 if info.get("enable_dp_attention") else info.get("dp_size", 1)
    return info.get("tp_size", 1) * info.get("pp_size", 1) * replicas
