"""How tokens are chosen: greedy, or sampled at a temperature under one of two lossless verification rules.

Shapes: R rows (token positions), V vocabulary.
"""

import math
from dataclasses import dataclass

import torch

from dflash.errors import UserError

RULES = ("target", "rejection")
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy, and then the rule does not matter.

    `rule` says how drafts are verified above 0: "target" drafts greedily, samples the target and accepts while equal
    (z-lab's rule); "rejection" samples the draft too, accepts with min(1, p/q) and resamples from the residual.
    """

    temperature: float = 0.0
    rule: str = "target"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature {self.temperature} must be 0 (greedy) or a positive number.")
        if self.rule not in RULES:
            raise UserError(f"Unknown verification rule {self.rule!r}: choose one of {', '.join(RULES)}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def samples_draft(self) -> bool:
        """Whether proposals are drawn from the draft's distribution instead of being its most likely tokens."""
        return not self.greedy and self.rule == "rejection"


class Dice:
    """The randomness of one decoding.

    Each emitted position owns one uniform number, whatever block it falls into. Under the "target" rule every token is
    therefore the same function of (text so far, position, seed) as in plain sampling: the same seed gives the same
    text. Numbers are drawn on the CPU, so they do not depend on the device.
    """

    def __init__(self, seed: int, positions: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._by_position = torch.rand(positions, generator=generator, dtype=torch.float64).to(device)
        self._generator = generator
        self._device = device

    def at(self, index: int, count: int) -> torch.Tensor:
        """The uniforms [count] of emitted positions index, index + 1, ..."""
        return self._by_position[index : index + count]

    def fresh(self, count: int) -> torch.Tensor:
        """Uniforms [count] that nothing else uses."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64).to(self._device)


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The greedy token of each row of `logits` [R, V]; the first one of equals.

    `max` and not `argmax`, which took 1.8 ms instead of 0.4 for 8 rows of 49,152 in bf16 on one core (torch 2.13).
    """
    return logits.max(-1).indices


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Distribution [R, V] (fp32) behind logits [R, V] at a temperature above 0, however small.

    The row's maximum goes before the division: what is left is 0 or below, and may overflow only to probability 0.
    """
    logits = logits.float()
    # Below fp32's smallest normal number the division itself (0 / 0) would no longer be one.
    return ((logits - logits.amax(-1, keepdim=True)) / max(temperature, _SMALLEST)).softmax(-1)


def draw(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token per row of `probs` [R, V] by inverting its cumulative distribution at `uniforms` [R]; returns [R].

    Rows need not sum to 1. Sums run in fp64: in fp32 the tail of a large vocabulary would lose probability.
    """
    cumulative = probs.double().cumsum(-1)
    total = cumulative[:, -1:]
    # The product may round up to the total itself, which no token's cumulative mass exceeds.
    thresholds = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # right=True: the first token whose cumulative mass *exceeds* the threshold, so never one of probability 0.
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
