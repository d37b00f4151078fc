"""The machine in a few words, for everything that shows a time."""

from typing import Any

import torch


def here(device: str) -> str:
    """What models on this torch device compute with, known before one is loaded."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    if kind != "cpu":
        return device
    return f"CPU, {_counted(torch.get_num_threads(), 'thread')}"


def in_words(machine: dict[str, Any]) -> str:
    """One line from `dflash.evaluation.machine.describe_machine`: "AMD EPYC, 2 threads, bfloat16, torch 2.13.0"."""
    device = machine["gpu"] or f"{machine['cpu']}, {_counted(machine['threads'], 'thread')}"
    return f"{device}, {machine['dtype']}, torch {machine['torch'].split('+')[0]}"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
