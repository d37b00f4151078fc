"""What a data set looks like to the trainer: counts, lengths, supervised share, and an example with its loss mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from dflash.data.load import Loaded
from dflash.data.rows import build_rows
from dflash.data.template import Rendered

QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True)
class DataStatistics:
    """Counts of conversations, tokens and rows. Lengths in tokens by name of the quantile, empty without any."""

    used: int
    rejected: int
    truncated: int  # of those used
    tokens: int
    supervised: int
    lengths: dict[str, int]
    supervised_lengths: dict[str, int]
    rows: int
    row_fill: float | None  # share of packed rows that is not padding, 0 to 1; None without packing

    @property
    def supervised_share(self) -> float:
        return self.supervised / max(1, self.tokens)


def statistics_of(loaded: Loaded, *, max_length: int, packing: bool) -> DataStatistics:
    """Statistics of what `load_conversations` gave and of the rows that are built from it."""
    lengths = [len(item.input_ids) for item in loaded.rendered]
    supervised = [item.supervised for item in loaded.rendered]
    rows = build_rows(loaded.rendered, max_length=max_length, packing=packing)
    return DataStatistics(
        used=len(lengths),
        rejected=len(loaded.rejects),
        truncated=sum(item.truncated for item in loaded.rendered),
        tokens=sum(lengths),
        supervised=sum(supervised),
        lengths=quantiles(lengths),
        supervised_lengths=quantiles(supervised),
        rows=len(rows),
        row_fill=sum(lengths) / (len(rows) * max_length) if packing and rows else None,
    )


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """The values at `QUANTILES` (nearest rank, so each is one of them)."""
    ordered = sorted(values)
    return {name: ordered[round(q * (len(ordered) - 1))] for name, q in QUANTILES.items()} if ordered else {}


def mask_runs(rendered: Rendered, tokenizer, max_tokens: int | None = None) -> list[tuple[str, bool]]:
    """The text of the first `max_tokens` tokens in stretches, each with whether it is supervised."""
    pairs = list(zip(rendered.loss_mask, rendered.input_ids, strict=True))[:max_tokens]
    return [
        (tokenizer.decode([token for _, token in run], skip_special_tokens=False), supervised)
        for supervised, run in groupby(pairs, key=lambda pair: pair[0])
    ]
