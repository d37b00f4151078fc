"""The GPUs of this machine, and who gets which of them."""

import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


def visible_gpus(environment: Mapping[str, str] = os.environ, driver: Path = _DRIVER) -> tuple[str, ...]:
    """Their names as CUDA_VISIBLE_DEVICES would list them; where it is not set, "0" and so on, as the driver counts.

    As CUDA reads that list, it ends before the first index that the driver does not have; names such as GPU-1f... are
    taken as they are. A list is believed where the driver's folder is missing, since /proc tells nothing in Windows'
    subsystem for Linux and in some sandboxes; a driver that is missing altogether is another complaint's business.
    """
    count = sum(1 for _ in driver.iterdir()) if driver.is_dir() else None
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(map(str, range(count or 0)))

    def is_there(name: str) -> bool:
        return name not in ("", "-1") and (count is None or not name.isdecimal() or int(name) < count)

    return tuple(takewhile(is_there, map(str.strip, listed.split(","))))


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
