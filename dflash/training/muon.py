"""Muon for matrices that may be sharded: momentum per shard, orthogonalisation of the gathered whole.

Keller Jordan's method (2024) with the step size of "Muon is Scalable for LLM Training" (arXiv 2502.16982). On whole
matrices it does to the last bit what `torch.optim.Muon` does, which knows nothing of shards; a test says so.
"""

import math
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from dflash.training.parallel import own_part, whole

_QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at zero; singular values end between about 0.7 and 1.2
_ITERATIONS = 5
_EPSILON = 1e-7


class Muon(Optimizer):
    """Every rank orthogonalises every matrix: no further communication, at the price of the same work on each."""

    def __init__(
        self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, matrix: torch.Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        part, gradient, average = own_part(matrix), own_part(matrix.grad), own_part(state["momentum_buffer"])
        average.lerp_(gradient, 1 - momentum)
        direction = orthogonalise(whole(_like(gradient.lerp(average, momentum), matrix)))
        part.mul_(1 - lr * weight_decay)
        # The factor makes an update about as large as AdamW's, so that one learning rate serves both.
        part.add_(_part_like(direction, matrix), alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of the matrix's singular value decomposition, nearly, by five Newton-Schulz steps in bf16."""
    a, b, c = _QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix.bfloat16() if wide else matrix.bfloat16().T
    x = x / x.norm().clamp(min=_EPSILON)  # no singular value may exceed 1
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _like(part: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """This rank's part as a tensor sharded as `matrix` is."""
    if not isinstance(matrix, DTensor):
        return part
    return DTensor.from_local(
        part, matrix.device_mesh, matrix.placements, run_check=False, shape=matrix.shape, stride=matrix.stride()
    )


def _part_like(tensor: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that every rank has whole."""
    if not isinstance(matrix, DTensor):
        return tensor
    shards = distribute_tensor(tensor, matrix.device_mesh, matrix.placements, src_data_rank=None)
    return shards.to_local().to(own_part(matrix).device)
