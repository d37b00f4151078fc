"""Torch devices by their names, judged without importing torch."""

import re
from pathlib import Path

MOST_GPUS = 4096  # that a run may ask for: more than anybody divides, few enough to look at each
# The driver of a machine of its own, and of Windows' subsystem for Linux.
_NVIDIA_DRIVER = ("/proc/driver/nvidia/version", "/dev/dxg")


def is_device_name(name: str) -> bool:
    """Whether this can be the name of a device to compute on; whether it is here is another question."""
    return re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", name) is not None


def nvidia_driver_is_here() -> bool:
    """Whether NVIDIA's driver is loaded: a guess for planning, torch has the last word."""
    return any(Path(sign).exists() for sign in _NVIDIA_DRIVER)


def assumed_device_type(name: str) -> str:
    """The type of a torch device: "auto" is CUDA where NVIDIA's driver is loaded."""
    if name == "auto":
        return "cuda" if nvidia_driver_is_here() else "cpu"
    return name.partition(":")[0]
