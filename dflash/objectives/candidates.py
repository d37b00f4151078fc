"""Candidates: the part of the vocabulary from which a training softmax is estimated (sampled softmax, arXiv 1412.2007).

The LM head is the dearest product of a training step on a small machine. Nearly all probability lies on the tokens that
the data uses; those are always candidates. A few of the others are drawn anew for every micro-batch, whose rows share
them, and stand for all of them: each counts rest / drawn times in the softmax's sum, so that the sum is right on
average. A label is always scored, candidate or not, so the draft learns every token and works with the whole head
wherever it is decoded.

Shapes: C candidates, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from dflash.errors import UserError

_DRAWN_SHARE = 0.25


@dataclass(frozen=True)
class Candidates:
    ids: torch.Tensor  # [C] int64, distinct
    column: torch.Tensor  # [V] int64: a token's place in `ids`, -1 where it is no candidate
    log_count: torch.Tensor  # [C] float32: logarithm of the number of tokens that a candidate stands for


class CandidateSampler:
    """The frequent tokens, fixed, and room for drawn ones."""

    def __init__(self, frequent: torch.Tensor, vocab_size: int, drawn: int) -> None:
        """`frequent` [F] distinct ids; `drawn` of the other vocab_size - F tokens join them each time."""
        device = frequent.device
        self._frequent = frequent
        is_rest = torch.ones(vocab_size, dtype=torch.bool, device=device)
        is_rest[frequent] = False
        self._rest = is_rest.nonzero().squeeze(-1)
        self._drawn = min(drawn, len(self._rest))
        self._log_count = torch.zeros(len(frequent) + self._drawn, device=device)
        if self._drawn:
            self._log_count[len(frequent) :] = math.log(len(self._rest) / self._drawn)
        self._column = torch.full((vocab_size,), -1, dtype=torch.int64, device=device)
        self._column[frequent] = torch.arange(len(frequent), device=device)

    def __len__(self) -> int:
        return len(self._log_count)

    def draw(self, generator: torch.Generator | None = None) -> Candidates:
        """The frequent tokens and fresh others; the same for the same generator, wherever the ids are."""
        keys = torch.rand(len(self._rest), generator=generator).to(self._rest.device)
        others = self._rest[keys.topk(self._drawn, sorted=False).indices.sort().values]
        first = len(self._frequent)
        column = self._column.clone()
        column[others] = torch.arange(first, first + self._drawn, device=column.device)
        return Candidates(torch.cat([self._frequent, others]), column, self._log_count)


def frequent_tokens(texts: Iterable[Sequence[int]], size: int, vocab_size: int) -> torch.Tensor:
    """The `size` tokens that occur most often in `texts`, as ascending ids [size].

    Where fewer occur, the smallest ids fill up: tokenizers number their tokens about in order of frequency.

    Raises:
        UserError: `size` exceeds the vocabulary.
    """
    if size > vocab_size:
        raise UserError(f"{size} frequent tokens were asked for, the vocabulary has {vocab_size}: ask for fewer.")
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for text in texts:
        counts += torch.bincount(torch.tensor(text, dtype=torch.int64), minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def candidate_sampler(
    texts: Iterable[Sequence[int]], size: int, vocab_size: int, device: torch.device | str = "cpu"
) -> CandidateSampler:
    """`size` candidates, three quarters of them the most frequent tokens of `texts`, one quarter drawn."""
    drawn = int(size * _DRAWN_SHARE)
    return CandidateSampler(frequent_tokens(texts, size - drawn, vocab_size).to(device), vocab_size, drawn)
