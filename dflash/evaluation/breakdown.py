"""What a result file says beyond its sums: tau by group and by place, acceptance by entropy, misses, pairs of drafts.

Intervals are 95 %. Those of tau resample whole prompts (a seeded bootstrap), because the steps of one answer resemble
each other; those of proportions are Wilson's over judged tokens, which takes the tokens as independent.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dflash.errors import UserError
from dflash.evaluation.acceptance import Proportion
from dflash.evaluation.report_file import Answer, Evaluation, Judgement, Miss

_DRAWS = 2000
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A figure over so many prompts and steps with its 95 % interval; None where nothing, or one prompt, says it."""

    value: float | None
    interval: tuple[float, float] | None
    prompts: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        interval = list(self.interval) if self.interval else None
        return {"value": self.value, "interval_95": interval, "prompts": self.prompts, "steps": self.steps}


@dataclass(frozen=True)
class MissedToken:
    """A token of the target's that drafts got wrong: `missed` is how often, out of the times it was judged.

    `instead` counts what the drafts wrote; `examples` are single places.
    """

    token: int
    text: str
    missed: Proportion
    instead: tuple[tuple[str, int], ...]
    examples: tuple[Miss, ...]


@dataclass(frozen=True)
class Paired:
    """Two drafts on the same prompts: `difference` is tau of the second less tau of the first, answer by answer."""

    difference: Estimate
    better: int
    equal: int
    worse: int
    pairs: tuple[tuple[Answer, Answer], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: of each pair its names and both taus."""
        return {
            "difference": self.difference.to_dict(),
            **{name: getattr(self, name) for name in ("better", "equal", "worse")},
            "pairs": [
                {"set": a.set, "id": a.id, "turn": a.turn, "first": a.tau, "second": b.tau} for a, b in self.pairs
            ],
        }


def tau_of(answers: Iterable[Answer]) -> Estimate:
    """Emitted tokens per target forward over all answers, last blocks counted as they were cut."""
    answers = list(answers)
    return _ratio((answer.prompt, answer.decoded_tokens, answer.steps) for answer in answers)


def tau_by(answers: Iterable[Answer], field: str) -> dict[str, Estimate]:
    """`tau_of` the answers that share a `set`, `category` or `language`, the highest first."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(getattr(answer, field) or "unnamed", []).append(answer)
    estimates = {name: tau_of(members) for name, members in groups.items()}
    return dict(sorted(estimates.items(), key=lambda item: -(item[1].value or 0)))


def tau_by_position(answers: Iterable[Answer], edges: Sequence[int]) -> list[Estimate]:
    """Tau of the steps that begin at emitted positions [edges[i], edges[i + 1]), for every i.

    Raises:
        UserError: the answers have no detail.
    """
    bins: list[list[tuple[Hashable, int, int]]] = [[] for _ in range(len(edges) - 1)]
    for answer in answers:
        detail = _detailed(answer)
        for start, emitted in zip(detail.starts, detail.emitted, strict=True):
            place = _bin(edges, start)
            if place is not None:
                bins[place].append((answer.prompt, emitted, 1))
    return [_ratio(rows) for rows in bins]


def acceptance_by(
    answers: Iterable[Answer], edges: Sequence[float], measure: Callable[[Judgement], float]
) -> list[Proportion]:
    """How many judged drafts were accepted where edges[i] <= measure(judgement) < edges[i + 1], for every i.

    `measure` is any number of a judgement: its entropy, its position in the text, its slot.

    Raises:
        UserError: the answers have no detail.
    """
    hits, totals = [0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for answer in answers:
        for judgement in _detailed(answer).judgements():
            place = _bin(edges, measure(judgement))
            if place is not None:
                hits[place] += judgement.accepted
                totals[place] += 1
    return [Proportion(hit, total) for hit, total in zip(hits, totals, strict=True)]


def most_missed(answers: Iterable[Answer], count: int = 20, examples: int = 3) -> list[MissedToken]:
    """The target's tokens at which most blocks died, with what the drafts wrote instead and where.

    Raises:
        UserError: the answers have no detail.
    """
    judged: Counter[int] = Counter()
    places: dict[int, list[Miss]] = {}
    for answer in answers:
        detail = _detailed(answer)
        judged.update(judgement.token for judgement in detail.judgements())
        for miss in detail.misses():
            places.setdefault(miss.target_token, []).append(miss)
    worst = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))[:count]
    return [
        MissedToken(
            token,
            misses[0].target_text,
            Proportion(len(misses), judged[token]),
            tuple(Counter(miss.draft_text for miss in misses).most_common(4)),
            tuple(misses[:examples]),
        )
        for token, misses in worst
    ]


def check_alike(first: Evaluation, second: Evaluation) -> None:
    """Refuse to compare what was decoded differently.

    Raises:
        UserError: a setting on which tau depends, other than draft and block size, is not the same in both.
    """
    for name in ("target", "max_new_tokens", "temperature", "rule", "seed", "turns"):
        if first.settings.get(name) != second.settings.get(name):
            raise UserError(
                f"These evaluations differ in {name} ({first.settings.get(name)} and {second.settings.get(name)}): "
                "evaluate both drafts alike to compare them."
            )


def paired(first: Evaluation, second: Evaluation) -> Paired:
    """Two evaluations compared on the answers they share.

    Raises:
        UserError: they share none, or were decoded with other settings.
    """
    check_alike(first, second)
    others = {(answer.prompt, answer.turn): answer for answer in second.answers}
    pairs = tuple(
        (answer, others[answer.prompt, answer.turn])
        for answer in first.answers
        if (answer.prompt, answer.turn) in others
    )
    if not pairs:
        raise UserError("These evaluations share no prompt: evaluate both drafts on the same prompt sets.")
    better = sum((b.tau or 0) > (a.tau or 0) for a, b in pairs)
    equal = sum((b.tau or 0) == (a.tau or 0) for a, b in pairs)
    difference = _difference(pairs)
    return Paired(difference, better, equal, len(pairs) - better - equal, pairs)


def _difference(pairs: Sequence[tuple[Answer, Answer]]) -> Estimate:
    column = {prompt: number for number, prompt in enumerate(dict.fromkeys(a.prompt for a, _ in pairs))}
    sums = np.zeros((4, len(column)))  # tokens and steps of the first, tokens and steps of the second
    for a, b in pairs:
        sums[:, column[a.prompt]] += (a.decoded_tokens, a.steps, b.decoded_tokens, b.steps)
    return _bootstrapped(sums, lambda s: s[2] / s[3] - s[0] / s[1], steps=int(sums[3].sum()))


def _ratio(rows: Iterable[tuple[Hashable, int, int]]) -> Estimate:
    """Sum of the second over sum of the third, resampling what shares the first."""
    sums: dict[Hashable, list[int]] = {}
    for prompt, tokens, steps in rows:
        total = sums.setdefault(prompt, [0, 0])
        total[0] += tokens
        total[1] += steps
    table = np.array(list(sums.values()), dtype=float).reshape(-1, 2).T
    return _bootstrapped(table, lambda s: s[0] / s[1], steps=int(table[1].sum()))


def _bootstrapped(sums: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], *, steps: int) -> Estimate:
    """`figure` of sums [F, P] over P prompts: F totals give one number. Draws that hold no step are left out."""
    prompts = sums.shape[1]
    if not steps:
        return Estimate(None, None, prompts, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(figure(sums.sum(1)))
        if prompts < 2:
            return Estimate(value, None, prompts, steps)
        picks = np.random.default_rng(_SEED).integers(prompts, size=(_DRAWS, prompts))
        drawn = figure(sums[:, picks].sum(-1))
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return Estimate(value, (float(low), float(high)), prompts, steps)


def _bin(edges: Sequence[float], value: float) -> int | None:
    place = int(np.searchsorted(edges, value, side="right")) - 1
    return place if 0 <= place < len(edges) - 1 else None


def _detailed(answer: Answer):
    if answer.detail is None:
        raise UserError("This result file holds no detail per step (it is of an older version): evaluate again.")
    return answer.detail
