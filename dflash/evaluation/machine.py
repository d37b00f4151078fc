"""What a measurement was made on, in words that a result file can keep."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from dflash.decoding.engine import Engine


def describe_machine(engine: Engine) -> dict[str, Any]:
    """Device, CPU, cores this process may use, threads, dtype and versions."""
    target = engine.target
    fields = _cpuinfo()
    gpu = torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else None
    return {
        "device": str(target.device),
        "gpu": gpu,
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "amx_bf16": "amx_bf16" in fields.get("flags", "").split(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(target.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpuinfo() -> dict[str, str]:
    """Fields of the first CPU in /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
