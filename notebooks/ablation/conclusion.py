"""Conclusions in sentences that are made from the figures, so that they cannot say more, nor something else."""

from collections.abc import Sequence

from ablation.results import RunResult
from ablation.settings import Ablation
from ablation.statistics import Estimate, tau_difference, values_of, verdict

_NAMES = {"blocks.num_anchors": "anchors", "blocks.gamma": "gamma", "draft.block_size": "trained with blocks of"}


def conclusion(ablation: Ablation, results: Sequence[RunResult], used: int) -> list[str]:
    """One sentence, in Markdown, for every value but the baseline: its tau against the baseline's."""
    name = _NAMES[ablation.setting]
    return [
        f"{name} {value:g} instead of {ablation.baseline:g}: tau {_compared(difference)}."
        for value in values_of(results)
        if value != ablation.baseline
        for difference in [tau_difference(results, value, ablation.baseline, used=used)]
    ]


def _compared(difference: Estimate) -> str:
    seeds = len(difference.seeds)
    rests_on = f"{difference.conversations} conversations, {seeds} seed{'s' if seeds > 1 else ''}"
    words, interval = verdict(difference), f"[{difference.low:+.3f}, {difference.high:+.3f}]"
    if difference.clear:
        word, _, rest = words.partition(",")
        return f"is **{word}** by {abs(difference.value):.3f} {interval}{f',{rest}' if rest else ''} ({rests_on})"
    return f"differs by {difference.value:+.3f} {interval}: **{words}** ({rests_on})"
