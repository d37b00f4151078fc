"""The DFlash objective: cross-entropy with exponential decay over a block's slots (arXiv 2602.06036)."""

from dataclasses import dataclass

import torch

from dflash.blocks.plan import BlockPlan
from dflash.objectives.candidates import Candidates
from dflash.objectives.head import weighted_cross_entropy


@dataclass
class BlockStatistics:
    """Sums per slot that pool over micro-batches, ranks and steps by addition; divide only when shown.

    Shapes: K slots; slot 0 (the anchor) stays zero.
    """

    weighted_loss: torch.Tensor  # scalar: sum of weight x loss
    weight: torch.Tensor  # scalar: sum of weights
    loss: torch.Tensor  # [K] sum of unweighted losses
    correct: torch.Tensor  # [K] slots whose argmax was the label
    prefix: torch.Tensor  # [K] slots that were right together with all slots before them
    count: torch.Tensor  # [K] supervised slots

    def __add__(self, other: "BlockStatistics") -> "BlockStatistics":
        return BlockStatistics(*(mine + theirs for mine, theirs in zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.weighted_loss, self.weight, self.loss, self.correct, self.prefix, self.count)

    def summary(self) -> dict[str, float | list[float]]:
        """Readable means. `tau_estimate` = 1 + expected run of right slots; decoding will differ: text is its own."""
        count = self.count[1:].clamp(min=1)
        return {
            "loss": (self.weighted_loss / self.weight.clamp(min=1e-12)).item(),
            "slot_loss": (self.loss[1:] / count).tolist(),
            "slot_accuracy": (self.correct[1:] / count).tolist(),
            "slot_prefix": (self.prefix[1:] / count).tolist(),
            "slot_count": self.count[1:].tolist(),
            "tau_estimate": 1 + (self.prefix[1:] / count).sum().item(),
        }


def decayed_cross_entropy(
    hidden: torch.Tensor, head: torch.Tensor, plan: BlockPlan, candidates: Candidates | None = None
) -> tuple[torch.Tensor, BlockStatistics]:
    """Weighted loss *sum* (divide by the global weight sum) and statistics.

    Args:
        hidden: [B, N*K, E] from the draft; head: [V, E], the target's; plan: the step's blocks;
        candidates: estimate the softmax from these tokens, which is cheaper; None takes the whole vocabulary.

    Rows of weight zero never reach the LM head.
    """
    flat_weights = plan.weights.flatten()
    rows = flat_weights.nonzero().squeeze(-1)
    labels, weights = plan.labels.flatten()[rows], flat_weights[rows]
    weighted, losses, correct = weighted_cross_entropy(hidden.flatten(0, 1)[rows], head, labels, weights, candidates)

    shape = plan.weights.shape
    supervised = plan.weights > 0
    right = torch.zeros(flat_weights.shape, dtype=torch.bool, device=head.device)
    right[rows] = correct
    right = right.view(shape)
    loss_map = torch.zeros(flat_weights.shape, device=head.device)
    loss_map[rows] = losses.detach()
    # A run counts while every slot from 1 on is right; unsupervised slots end it.
    runs = (right & supervised)[..., 1:].int().cumprod(-1)
    prefix = torch.nn.functional.pad(runs, (1, 0))
    per_slot = lambda values: values.float().flatten(0, 1).sum(0)  # noqa: E731
    statistics = BlockStatistics(
        weighted_loss=weighted.detach(),
        weight=weights.sum(),
        loss=per_slot(loss_map.view(shape)),
        correct=per_slot(right & supervised),
        prefix=per_slot(prefix),
        count=per_slot(supervised),
    )
    return weighted, statistics
