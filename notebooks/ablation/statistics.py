"""Tau of a setting and its difference from the baseline, with intervals over the conversations held out.

An interval is 95 %, from a seeded bootstrap that resamples whole conversations, because the blocks of one answer
resemble each other. It tells how much hangs on which conversations were held out; how much hangs on the training itself
is told by the seeds, which are reported one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ablation.results import RunResult
from dflash.errors import UserError
from dflash.evaluation.score import ConversationScore

_DRAWS = 4000
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and what it rests on."""

    value: float
    low: float
    high: float
    conversations: int
    blocks: int
    seeds: dict[int, float]  # the same figure of each seed's run alone

    @property
    def clear(self) -> bool:
        """Of a difference: whether the interval excludes zero and the seeds agree on its sign."""
        return (self.low > 0 or self.high < 0) and len({value > 0 for value in self.seeds.values()}) == 1


def tau(results: Iterable[RunResult], value: float, used: int) -> Estimate:
    """Tau of the drafts trained with `value`, judged in blocks of `used` slots: 1 + the expected run of right slots.

    Raises:
        UserError: there is no such run.
    """
    runs = _by_seed(results, value, used)
    counts = [score for scores in runs.values() for score in scores]
    table = _table(counts)
    drawn = _tau(table[:, _draws(len(counts))].sum(2))
    singles = {seed: float(_tau(_table(scores).sum(1))) for seed, scores in runs.items()}
    return _estimate(float(_tau(table.sum(1))), drawn, counts, singles)


def tau_difference(
    results: Iterable[RunResult], value: float, baseline: float, *, used: int, baseline_used: int | None = None
) -> Estimate:
    """Tau of `value` less tau of `baseline`, over the seeds that have both, conversation by conversation.

    Raises:
        UserError: a run is missing, or two of one seed were judged on other conversations.
    """
    results = list(results)
    ours, theirs = _by_seed(results, value, used), _by_seed(results, baseline, baseline_used or used)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise UserError(f"No seed has runs of both {value:g} and {baseline:g}: make them with notebooks/ablate.py.")
    for seed in seeds:
        if [score.id for score in ours[seed]] != [score.id for score in theirs[seed]]:
            raise UserError(f"The runs of seed {seed} were judged on other conversations, so they cannot be paired.")
    mine = [score for seed in seeds for score in ours[seed]]
    base = [score for seed in seeds for score in theirs[seed]]
    picks = _draws(len(mine))
    drawn = _tau(_table(mine)[:, picks].sum(2)) - _tau(_table(base)[:, picks].sum(2))
    singles = {s: float(_tau(_table(ours[s]).sum(1)) - _tau(_table(theirs[s]).sum(1))) for s in seeds}
    return _estimate(float(_tau(_table(mine).sum(1)) - _tau(_table(base).sum(1))), drawn, mine, singles)


def slot_accuracy(results: Iterable[RunResult], value: float, used: int) -> list[float]:
    """How often each slot 1..K-1 was right, whether or not those before it were, pooled over all seeds."""
    scores = [score for run in _by_seed(results, value, used).values() for score in run]
    correct = np.array([score.correct for score in scores]).sum(0)
    return (correct / np.array([score.count for score in scores]).sum(0)).tolist()


def values_of(results: Iterable[RunResult]) -> list[float]:
    """The values that there are runs of, ascending."""
    return sorted({result.value for result in results})


def verdict(difference: Estimate) -> str:
    """What a difference from the baseline says, in words that claim no more than it shows."""
    if difference.clear:
        word = "higher" if difference.value > 0 else "lower"
        return word if len(difference.seeds) > 1 else f"{word}, by one seed alone"
    if difference.low > 0 or difference.high < 0:
        return "the seeds disagree"
    return "no difference beyond the interval"


def _by_seed(results: Iterable[RunResult], value: float, used: int) -> dict[int, tuple[ConversationScore, ...]]:
    found = {r.seed: r.held_out[used] for r in results if r.value == value and used in r.held_out}
    if not found:
        raise UserError(f"No run of {value:g} was judged with block size {used}: make it with notebooks/ablate.py.")
    return found


def _table(scores: Sequence[ConversationScore]) -> np.ndarray:
    """[2, C, K - 1]: slots reached, and slots there were, of C conversations."""
    return np.array([[score.reached for score in scores], [score.count for score in scores]], dtype=float)


def _tau(sums: np.ndarray) -> np.ndarray:
    """Of [2, ..., K - 1]; a slot that no conversation has adds nothing."""
    reached, count = sums
    return 1 + (reached / np.maximum(count, 1)).sum(-1)


def _draws(conversations: int) -> np.ndarray:
    return np.random.default_rng(_SEED).integers(conversations, size=(_DRAWS, conversations))


def _estimate(
    value: float, drawn: np.ndarray, scores: Sequence[ConversationScore], seeds: dict[int, float]
) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    blocks = sum(score.count[0] for score in scores)
    return Estimate(value, float(low), float(high), len(scores), blocks, seeds)
