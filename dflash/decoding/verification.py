"""Which drafted tokens stand, and which token the target puts behind them.

Shapes: K drafted tokens, V vocabulary. Row k of the target's logits judges drafted token k (0-based); row K gives the
bonus token when all stand. With K = 0 every rule is plain decoding.
"""

from dataclasses import dataclass

import torch

from dflash.decoding.sampling import Dice, Sampling, draw, most_likely, probabilities


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens [K] and, when they were sampled, the draft's distributions [K, V] they were drawn from."""

    tokens: torch.Tensor
    probs: torch.Tensor | None = None

    @classmethod
    def empty(cls, device: torch.device) -> "Proposal":
        return cls(torch.empty(0, dtype=torch.long, device=device))


@dataclass(frozen=True)
class Verdict:
    """`proposed` [K] as a list, how many of them stand, and the target's own token after those."""

    proposed: list[int]
    accepted: int
    correction: int


def verify(logits: torch.Tensor, proposal: Proposal, sampling: Sampling, dice: Dice, index: int) -> Verdict:
    """Judge a proposal by the target's logits [K + 1, V]; `index` is the emitted position of row 0."""
    if sampling.samples_draft and len(proposal.tokens):
        return _verify_by_rejection(probabilities(logits, sampling.temperature), proposal, dice, index)
    if sampling.greedy:
        choices = most_likely(logits)
    else:
        choices = draw(probabilities(logits, sampling.temperature), dice.at(index, len(logits)))
    return _accept_while_equal(choices.tolist(), proposal.tokens.tolist())


def _accept_while_equal(choices: list[int], proposed: list[int]) -> Verdict:
    accepted = 0
    while accepted < len(proposed) and choices[accepted] == proposed[accepted]:
        accepted += 1
    return Verdict(proposed, accepted, choices[accepted])


def _verify_by_rejection(target_probs: torch.Tensor, proposal: Proposal, dice: Dice, index: int) -> Verdict:
    """Accept token x with min(1, p(x)/q(x)); at the first refusal draw from the normalised (p - q)+, else from p."""
    count = len(proposal.tokens)
    chosen = proposal.tokens[:, None]
    p = target_probs[:count].gather(1, chosen).squeeze(1)
    q = proposal.probs.gather(1, chosen).squeeze(1)
    stands = dice.fresh(count) * q < p
    accepted = int(stands.long().cumprod(0).sum())
    rest = target_probs[accepted]
    if accepted < count:
        residual = (rest - proposal.probs[accepted]).clamp_(min=0)
        # p == q up to rounding leaves no residual; a refusal then has probability 0 up to rounding, and p is right.
        rest = residual if residual.sum() > 0 else rest
    correction = draw(rest[None], dice.at(index + accepted, 1))
    return Verdict(proposal.tokens.tolist(), accepted, int(correction))
