"""Torch devices by their names, judged without importing torch."""

import os
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


def memory_of(kind: str) -> int | None:
    """Bytes of one device of that type; of the whole machine for the CPU, None where there is no such device here."""
    if kind == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if kind == "cuda" and nvidia_driver_is_here():
        import torch  # only it knows, and a machine with the driver is about to load it anyway

        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return None


def assumed_device_type(name: str) -> str:
    """The type of a torch device: "auto" is CUDA where NVIDIA's driver is loaded."""
    if name == "auto":
        return "cuda" if nvidia_driver_is_here() else "cpu"
    return name.partition(":")[0]
