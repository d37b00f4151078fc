"""A finished race as a record: what is exported, saved, opened by link, and drawn.

The record is plain JSON and stands for itself: it holds the token ids, the texts and the times of every step, so that
it can be shown years later, without the models. Whatever can be derived is derived anew from the steps.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dflash.decoding.comparison import Comparison, Difference, first_difference
from dflash.decoding.trace import Step, Trace
from dflash.errors import UserError
from workbench.lane import lane_payload

FORMAT = 1
SHAPES = (
    "Checked token id by token id against plain greedy decoding by the target in the block's shape. In low precision a "
    "forward of one token and a forward of a block round differently, so only equal shapes can be compared exactly. "
    "The speed-up is measured against plain decoding in its fastest shape, one token per forward."
)
SAMPLED = (
    "With a temperature above 0 both texts are drawn from the target's distribution. Two draws may differ, so equal "
    "token ids are not expected and nothing is claimed here."
)
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, StringConstraints(max_length=100_000)]
_MAX_STEPS = 20_000


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Step(_Part):
    index: _Count
    proposed: list[_Count] = Field(max_length=256)
    accepted: _Count
    correction: _Count
    emitted: list[_Count] = Field(min_length=1, max_length=257)
    draft_s: _Seconds
    verify_s: _Seconds
    overhead_s: _Seconds
    gap: _Number | None = None

    @model_validator(mode="after")
    def _accepted_were_proposed(self) -> "_Step":
        if self.accepted > len(self.proposed) or len(self.emitted) > self.accepted + 1:
            raise ValueError("more tokens stand than were proposed and corrected")
        return self


class _Trace(_Part):
    mode: Literal["target", "draft"]
    prompt_tokens: _Count
    block_size: Annotated[int, Field(ge=1, le=256)]
    temperature: _Seconds
    rule: Literal["target", "rejection"]
    steps: list[_Step] = Field(min_length=1, max_length=_MAX_STEPS)
    prefill_s: _Seconds
    time_to_first_token_s: _Seconds
    stopped: bool

    @model_validator(mode="after")
    def _steps_fit(self) -> "_Trace":
        if [step.index for step in self.steps] != list(range(len(self.steps))):
            raise ValueError("steps are not numbered 0, 1, 2 ...")
        if any(step.accepted >= self.block_size for step in self.steps):
            raise ValueError("a step accepts more than a block holds")
        return self

    def trace(self) -> Trace:
        values = self.model_dump()
        return Trace(**values | {"steps": [Step(**step) for step in values["steps"]]})


class _StepTexts(_Part):
    proposed: list[_Text]
    correction: _Text
    emitted: list[_Text]


class _Texts(_Part):
    target: list[_StepTexts]
    draft: list[_StepTexts]


class _Message(_Part):
    role: Literal["system", "user", "assistant"]
    content: _Text


class _Settings(_Part):
    prompt: _Text
    max_new_tokens: Annotated[int, Field(ge=1)]
    block_size: _Count
    temperature: _Seconds
    rule: Literal["target", "rejection"]
    draft: _Text
    seed: _Count
    history: list[_Message] = Field(default=[], max_length=64)


class _Difference(_Part):
    index: _Count
    first: int | None
    second: int | None
    gap: _Number | None


class RaceRecord(_Part):
    """A finished race. `difference` is where draft and reference part, `one_token_difference` where one-token shape
    and draft do (see `explain_difference`); both None where nothing was compared or nothing differs."""

    format: Literal[1] = FORMAT
    settings: _Settings
    target_name: _Text
    machine: dict[str, str | int | float | bool | None] = Field(max_length=32)
    target: _Trace
    draft: _Trace
    reference: _Trace | None
    texts: _Texts
    difference: _Difference | None = None
    one_token_difference: _Difference | None = None
    beside: _Text = ""  # what computed beside the race and spoilt its times, as a sentence
    saved: _Text | None = None  # the day on which it was kept, as YYYY-MM-DD

    @model_validator(mode="after")
    def _texts_fit(self) -> "RaceRecord":
        for name in ("target", "draft"):
            steps, texts = getattr(self, name).steps, getattr(self.texts, name)
            counts = [(len(step.proposed), len(step.emitted)) for step in steps]
            if counts != [(len(text.proposed), len(text.emitted)) for text in texts]:
                raise ValueError(f"texts.{name} does not have one text for each token of its steps")
        return self

    def comparison(self) -> Comparison:
        """Identity and speed-up, worked out from the steps."""
        reference = self.reference.trace() if self.reference else None
        target, draft = self.target.trace(), self.draft.trace()
        index = first_difference(reference.tokens, draft.tokens) if reference else None
        return Comparison(target, draft, reference, None if reference is None else index is None, index)


def parse_record(given: Any) -> RaceRecord:
    """A record from JSON that somebody else may have written.

    Raises:
        UserError: it is not the record of a race; the sentence names the first thing that is wrong.
    """
    try:
        return RaceRecord.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"This is no trace of the Decode page: {place}: {reason}; export it there anew.") from error


def record_of(
    settings: dict[str, Any],
    comparison: Comparison,
    texts: dict[str, list[dict[str, Any]]],
    differences: tuple[Difference | None, Difference | None],
    *,
    target_name: str,
    machine: dict[str, Any],
    beside: str,
) -> RaceRecord:
    """The record of a race that has just been run."""
    reference = comparison.reference
    return parse_record(
        {
            "settings": settings,
            "target_name": target_name,
            "machine": machine,
            "target": asdict(comparison.target),
            "draft": asdict(comparison.draft),
            "reference": asdict(reference) if reference else None,
            "texts": texts,
            "difference": asdict(differences[0]) if differences[0] else None,
            "one_token_difference": asdict(differences[1]) if differences[1] else None,
            "beside": beside,
        }
    )


def exported(record: RaceRecord) -> dict[str, Any]:
    """The record as JSON-safe data with the derived numbers beside the recorded ones."""
    comparison = record.comparison()
    traces = {"target": comparison.target, "draft": comparison.draft, "reference": comparison.reference}
    return record.model_dump() | {
        "prompt": record.settings.prompt,
        "speedup": comparison.speedup,
        "identical": comparison.identical,
        "first_difference": comparison.first_difference,
        "accepted_histogram": comparison.draft.accepted_histogram,
        **{name: trace.to_dict() if trace else None for name, trace in traces.items()},
    }


def picture_of(record: RaceRecord, race_id: str) -> dict[str, Any]:
    """The last picture of a race, as the page draws it."""
    comparison, texts = record.comparison(), record.texts.model_dump()
    return {
        "id": race_id,
        "phase": "done",
        "message": "",
        "prompt": record.settings.prompt,
        "settings": record.settings.model_dump(),
        "speedup": comparison.speedup,
        "verdict": verdict_of(record, comparison),
        "beside": record.beside,
        "recorded": None,
        "target": lane_payload(comparison.target, texts["target"], True),
        "draft": lane_payload(comparison.draft, texts["draft"], True),
    }


def verdict_of(record: RaceRecord, comparison: Comparison) -> dict[str, str]:
    """The lossless badge: its state, its words and what its tooltip says."""
    if comparison.identical is None:
        return {"state": "sampling", "text": "sampled, not compared", "detail": SAMPLED}
    count = len(comparison.draft.tokens)
    if not comparison.identical:
        parted = record.difference
        gap = "" if parted is None or parted.gap is None else f", logit gap {abs(parted.gap):.3f}"
        text = f"differs at token {comparison.first_difference + 1}{gap}"
        return {"state": "differs", "text": text, "detail": SHAPES}
    verdict = {"state": "identical", "text": f"identical, {count} tokens", "detail": SHAPES}
    if (parted := record.one_token_difference) is not None:
        gap = "" if parted.gap is None else f" (logit gap {abs(parted.gap):.3f})"
        verdict["note"] = f"one-token forwards part from it at token {parted.index + 1}: a near tie{gap}"
    return verdict
