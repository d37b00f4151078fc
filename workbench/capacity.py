"""What this machine has to train with."""

import torch


def gpu_count() -> int:
    """CUDA devices that torch can use here."""
    return torch.cuda.device_count()
