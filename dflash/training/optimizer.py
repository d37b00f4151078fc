"""Optimizers: AdamW, or Muon for matrices beside AdamW for the rest. All of them work on shards."""

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW, Optimizer

from dflash.config import OptimizerConfig
from dflash.training.muon import Muon
from dflash.training.parallel import own_part, shard_group


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
    return [
        Muon(matrices, lr=config.lr, weight_decay=config.weight_decay),
        AdamW(others, lr=config.lr, betas=betas, weight_decay=0.0),
    ]


def set_learning_rate(optimizers: list[Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


@torch.no_grad()
def scale_and_clip(model: nn.Module, scale: float | torch.Tensor, limit: float) -> torch.Tensor:
    """Multiply all gradients by `scale`, then clip their joint norm to `limit`; returns the norm before clipping.

    The norm is that of the whole gradient: shards are added up over the ranks that hold them.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [own_part(p.grad) for p in parameters]
    torch._foreach_mul_(gradients, _on(gradients, scale))
    norm = nn.utils.get_total_norm(gradients)
    group = shard_group(parameters[0])
    if group is not None:
        squared = norm.to(parameters[0].device_mesh.device_type).square()
        dist.all_reduce(squared, group=group)
        norm = squared.sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, _on(gradients, factor))
    return norm


def _on(gradients: list[torch.Tensor], factor: float | torch.Tensor) -> float | torch.Tensor:
    """Gradients may be offloaded to the host, the factor computed on a GPU."""
    return factor.to(gradients[0].device) if isinstance(factor, torch.Tensor) else factor
