"""A short description of the machine, for everything that shows a time."""

import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """For example "2 cores of Intel Xeon, torch 2.13.0", or the GPU's name where there is one."""
    version = torch.__version__.split("+")[0]
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {version}"
    threads = torch.get_num_threads()
    unit = "core" if threads == 1 else "cores"
    return f"{threads} {unit} of {_processor()}, torch {version}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].split("@")[0]
                return " ".join(name.replace("(R)", "").replace("(TM)", "").replace("CPU", "").split())
    return platform.processor() or platform.machine() or f"a {os.cpu_count()}-core machine"
