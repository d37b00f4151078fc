"""Evaluation results as a file: written by `dflash evaluate --json`, read back typed. Needs no torch.

Format 2 keeps a `detail` per result (see `dflash.evaluation.detail`); files without a `format` are older, hold counts
only, and are read with `detail` None.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from dflash.evaluation.acceptance import AcceptanceCounts
from dflash.files import write_atomically

FORMAT = 2
_CONTEXT = 12  # tokens of the answer shown before a miss


@dataclass(frozen=True)
class Judgement:
    """One drafted token that the target judged, at an emitted `position` (0 is the answer's first) and a `slot` >= 1.

    `entropy` is the target's there in nats; `token` and `text` are what the target wrote.
    """

    position: int
    slot: int
    accepted: bool
    entropy: float
    token: int
    text: str


@dataclass(frozen=True)
class Miss:
    """The place where a block died: what the draft wrote, what the target wrote, and the answer's text before it."""

    position: int
    slot: int
    draft_token: int
    draft_text: str
    target_token: int
    target_text: str
    before: str
    entropy: float


@dataclass(frozen=True)
class Detail:
    """The steps of one answer, as `dflash.evaluation.detail.detail_of` records them."""

    accepted: tuple[int, ...]
    missed: tuple[int | None, ...]
    missed_pieces: tuple[str | None, ...]
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    entropy: tuple[float, ...]

    def __post_init__(self) -> None:
        steps, tokens = len(self.accepted), len(self.tokens)
        per_step = {len(self.missed), len(self.missed_pieces)} == {steps}
        per_token = {len(self.pieces), len(self.entropy)} == {tokens}
        covered = not steps or self.starts[-1] < tokens <= self.starts[-1] + self.accepted[-1] + 1
        if not (per_step and per_token and covered):
            raise UserError("The detail of a result does not fit together: make the evaluation again.")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Emitted position of each step's first drafted token; position 0 comes from the prefill."""
        return tuple(accumulate((kept + 1 for kept in self.accepted[:-1]), initial=1)) if self.accepted else ()

    @property
    def emitted(self) -> tuple[int, ...]:
        """Tokens that each step added to the text: its accepted drafts and one more, unless the text ended first."""
        ends = [min(start + kept + 1, len(self.tokens)) for start, kept in zip(self.starts, self.accepted, strict=True)]
        return tuple(end - start for start, end in zip(self.starts, ends, strict=True))

    def judgements(self) -> Iterator[Judgement]:
        """Every drafted token up to and including the one its block died at, within the text."""
        for start, kept, missed in zip(self.starts, self.accepted, self.missed, strict=True):
            last = start + kept + (missed is not None)
            for position in range(start, min(last, len(self.tokens))):
                yield Judgement(
                    position,
                    position - start + 1,
                    position < start + kept,
                    self.entropy[position],
                    self.tokens[position],
                    self.pieces[position],
                )

    def misses(self) -> Iterator[Miss]:
        """Every place where a block died within the text."""
        for step, (start, kept) in enumerate(zip(self.starts, self.accepted, strict=True)):
            token = self.missed[step]
            if token is not None:
                at = start + kept
                yield Miss(
                    position=at,
                    slot=kept + 1,
                    draft_token=token,
                    draft_text=self.missed_pieces[step] or "",
                    target_token=self.tokens[at],
                    target_text=self.pieces[at],
                    before="".join(self.pieces[max(0, at - _CONTEXT) : at]),
                    entropy=self.entropy[at],
                )


@dataclass(frozen=True)
class Answer:
    """One prompt's turn, decoded both ways. `tau` counts a last, cut block by what it emitted; None without steps."""

    set: str
    id: str
    category: str
    language: str
    turn: int
    counts: AcceptanceCounts
    steps: int
    decoded_tokens: int
    prompt_tokens: int
    speedup: float | None
    identical: bool | None
    detail: Detail | None

    @property
    def prompt(self) -> tuple[str, str]:
        """What tells prompts apart: set and id."""
        return self.set, self.id

    @property
    def tau(self) -> float | None:
        return self.decoded_tokens / self.steps if self.steps else None


@dataclass(frozen=True)
class Evaluation:
    """A result file: what was measured, on what, and every answer. Times in `step_ms` are means in milliseconds.

    `step_ms` holds `target` (one token of the target alone), `draft`, `verify` and `overhead` (one step with draft).
    """

    draft_name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    answers: tuple[Answer, ...]
    step_ms: dict[str, float | None]
    speedup: float | None

    @property
    def block_size(self) -> int:
        return self.settings["block_size"]

    @property
    def counts(self) -> AcceptanceCounts:
        return AcceptanceCounts.pooled([answer.counts.histogram for answer in self.answers])

    @property
    def has_detail(self) -> bool:
        return all(answer.detail is not None for answer in self.answers)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report of `evaluate`, one result a line, so that files stay small and their differences readable.

    Raises:
        OSError: it cannot be written; the file is as it was before.
    """
    head = json.dumps(
        {name: value for name, value in report.items() if name != "results"}, indent=2, ensure_ascii=False
    )
    rows = ",\n    ".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in report["results"])
    write_atomically(path, f'{head[:-2]},\n  "results": [\n    {rows}\n  ]\n}}\n')


def read_report(path: Path | str) -> Evaluation:
    """The result file at `path`, of this format or an older one.

    Raises:
        UserError: it cannot be read, is damaged, or is of a newer format.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON file: make the evaluation again with `dflash evaluate --json`.") from error
    return parse_report(record, str(path))


def parse_report(record: Any, where: str) -> Evaluation:
    """An evaluation from its JSON form; `where` names it in complaints.

    Raises:
        UserError: the record is damaged, or of a newer format.
    """
    try:
        version = record.get("format", 1)
        if version not in (1, FORMAT):
            raise UserError(
                f"{where} has format {version!r}, this version reads up to {FORMAT}: update dflash-workbench."
            )
        pooled, settings = record["pooled"], record["settings"]
        if not record["results"]:
            raise UserError(f"{where} holds no results: evaluate at least one prompt.")
        return Evaluation(
            draft_name=record.get("draft_name") or settings["draft"],
            settings={"block_size": int(settings["block_size"])} | settings,
            machine=dict(record["machine"]),
            answers=tuple(_answer(result) for result in record["results"]),
            step_ms={"target": pooled["target_step_ms"]} | pooled["mean_step_ms"],
            speedup=pooled["speedup"],
        )
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is no result of `dflash evaluate` ({error!r}): make the evaluation again.") from error


def _answer(result: dict[str, Any]) -> Answer:
    detail = result.get("detail")
    names = Detail.__dataclass_fields__
    return Answer(
        **{name: result.get(name) or "" for name in ("set", "category", "language")},
        **{name: result[name] for name in ("id", "turn", "steps", "decoded_tokens", "prompt_tokens")},
        **{name: result[name] for name in ("speedup", "identical")},
        counts=AcceptanceCounts(tuple(result["accepted_histogram"])),
        detail=Detail(**{name: tuple(detail[name]) for name in names}) if detail else None,
    )
