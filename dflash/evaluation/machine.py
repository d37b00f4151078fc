"""What a measurement was made on, in words that a result file can keep."""

import os
import platform
from typing import Any

import torch
import transformers

from dflash.cpu import cpu_flags, cpu_name
from dflash.decoding.engine import Engine


def describe_machine(engine: Engine) -> dict[str, Any]:
    """Device, CPU, cores this process may use, threads, dtype and versions."""
    target = engine.target
    gpu = torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else None
    return {
        "device": str(target.device),
        "gpu": gpu,
        "cpu": cpu_name(),
        "amx_bf16": "amx_bf16" in cpu_flags(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(target.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
