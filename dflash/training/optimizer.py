"""Optimizers: AdamW, or Muon for matrices beside AdamW for the rest."""

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from dflash.config import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Weight decay is decoupled and falls on matrices only, never on norms or biases."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim == 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim != 2]
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return [AdamW(groups, lr=config.lr, betas=betas)]
    # match_rms_adamw scales Muon's update to AdamW's usual size, so one learning rate serves both.
    return [
        Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=config.lr, betas=betas, weight_decay=0.0),
    ]


def set_learning_rate(optimizers: list[Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def scale_and_clip(model: nn.Module, scale: float | torch.Tensor, limit: float) -> torch.Tensor:
    """Multiply all gradients by `scale`, then clip their joint norm to `limit`; returns the norm before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, scale)
    return nn.utils.clip_grad_norm_(model.parameters(), limit)
