"""What this machine has to train with: GPUs and memory, for comparing a plan with it."""

import psutil
import torch


def gpu_count() -> int:
    """CUDA devices that torch can use here."""
    return torch.cuda.device_count()


def device_memory(kind: str) -> int | None:
    """Bytes of one device of that type; of the whole machine for the CPU, None where there is no such device here."""
    if kind == "cpu":
        return psutil.virtual_memory().total
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return None
