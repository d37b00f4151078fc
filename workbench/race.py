"""The race behind the Decode page: target alone, draft + target, then the lossless check, streamed to the page."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dflash.decoding.comparison import Comparison, explain_difference, first_difference
from dflash.decoding.engine import Engine, Stream
from dflash.decoding.prompt import render_prompt
from dflash.decoding.sampling import Sampling
from dflash.decoding.trace import Trace
from dflash.errors import UserError
from dflash.evaluation.machine import describe_machine
from workbench.bench import Bench
from workbench.lane import Lane, empty_lane

# Seconds between two pictures sent to the page. Time spent on them is not counted by the engine.
_PICTURE_EVERY = 0.1
_numbers = itertools.count(1)

_MESSAGES = {
    "target": "The target decodes alone …",
    "draft": "Now the draft proposes and the target verifies …",
}
SHAPES = (
    "Checked token id by token id against plain greedy decoding by the target in the block's shape. In low precision a "
    "forward of one token and a forward of a block round differently, so only equal shapes can be compared exactly. "
    "The speed-up is measured against plain decoding in its fastest shape, one token per forward."
)
SAMPLED = (
    "With a temperature above 0 both texts are drawn from the target's distribution. Two draws may differ, so equal "
    "token ids are not expected and nothing is claimed here."
)


@dataclass(frozen=True)
class RaceSettings:
    """What the page's controls, a permalink or the API ask for. `block_size` 0 takes the draft's own."""

    prompt: str
    max_new_tokens: int = 128
    block_size: int = 0
    temperature: float = 0.0
    rule: str = "target"
    draft: str = ""
    seed: int = 0

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, rule=self.rule, seed=self.seed)

    @classmethod
    def from_query(cls, query: dict[str, str], defaults: "RaceSettings") -> "RaceSettings":
        """Settings of a permalink; what it does not name keeps its default.

        Raises:
            UserError: a value is not of its field's kind.
        """
        values = asdict(defaults)
        for name, raw in query.items():
            if name in values and raw:
                kind = type(values[name])
                try:
                    values[name] = kind(raw)
                except ValueError as error:
                    kinds = {int: "a whole number", float: "a number"}
                    raise UserError(f"The link's {name} is {raw!r}: it must be {kinds[kind]}.") from error
                if kind is float and not math.isfinite(values[name]):
                    raise UserError(f"The link's {name} is {raw!r}: it must be a finite number.")
        return cls(**values)


class Race:
    """One race under way. `run` yields what the page draws, about ten times a second."""

    def __init__(self, bench: Bench, settings: RaceSettings) -> None:
        self._bench, self._settings = bench, settings
        self._id = f"{time.time():.3f}-{next(_numbers)}"
        self._lanes: dict[str, Lane] = {}
        self._traces: dict[str, Trace] = {}
        self._done: set[str] = set()
        self.comparison: Comparison | None = None

    def run(self) -> Iterator[dict[str, Any]]:
        """Pictures of the race; closing the generator stops decoding after the step in flight.

        Raises:
            UserError: target, draft, prompt or settings cannot be used.
        """
        settings = self._settings
        sampling = settings.sampling()
        if not settings.prompt.strip():
            raise UserError("The prompt is empty: write at least one word.")
        if not self._bench.is_ready(settings.draft):
            yield self._picture("loading", f"Loading {self._bench.target_name} and its draft …")
        engine = self._bench.engine(settings.draft)
        prompt_ids = render_prompt(engine.target, settings.prompt, max_new_tokens=settings.max_new_tokens)
        block_size = settings.block_size or None
        options = {"max_new_tokens": settings.max_new_tokens, "sampling": sampling}
        yield self._picture("target", _MESSAGES["target"])
        yield from self._lane("target", engine, engine.decode_target(prompt_ids, **options), prompt_ids)
        yield self._picture("draft", _MESSAGES["draft"])
        drafted = engine.decode_draft(prompt_ids, block_size=block_size, **options)
        yield from self._lane("draft", engine, drafted, prompt_ids)
        reference = None
        if sampling.greedy:
            width = self._traces["draft"].block_size
            stream = engine.decode_target(prompt_ids, shape="block", block_size=width, **options)
            yield from self._check(stream)
            reference = stream.trace
        self.comparison = self._compare(reference)
        yield self._picture("done", "", verdict=self._verdict(engine, prompt_ids))

    def export(self) -> dict[str, Any]:
        """The whole race as JSON-safe data, for download and for the API."""
        comparison = self.comparison
        return {
            "prompt": self._settings.prompt,
            "settings": asdict(self._settings),
            "target_name": self._bench.target_name,
            "machine": describe_machine(self._bench.engine(self._settings.draft)),
            "speedup": comparison.speedup,
            "identical": comparison.identical,
            "first_difference": comparison.first_difference,
            "target": comparison.target.to_dict(),
            "draft": comparison.draft.to_dict(),
            "reference": comparison.reference.to_dict() if comparison.reference else None,
            "accepted_histogram": comparison.draft.accepted_histogram,
        }

    def _lane(self, name: str, engine: Engine, stream: Stream, prompt_ids: list[int]) -> Iterator[dict[str, Any]]:
        self._traces[name] = stream.trace
        lane = self._lanes[name] = Lane(engine.target.tokenizer, prompt_ids)
        message = _MESSAGES[name]
        try:
            for _ in _paced(stream):
                lane.take(stream.trace)
                yield self._picture(name, message)
        finally:
            stream.close()
        lane.take(stream.trace)
        self._done.add(name)

    def _check(self, stream: Stream) -> Iterator[dict[str, Any]]:
        pending = {"state": "pending", "text": "checking", "detail": SHAPES}
        try:
            for _ in _paced(stream):
                tokens = len(stream.trace.tokens)
                yield self._picture("check", f"Checking against plain decoding in the block's shape: {tokens} tokens …", pending)
        finally:
            stream.close()

    def _compare(self, reference: Trace | None) -> Comparison:
        target, draft = self._traces["target"], self._traces["draft"]
        if reference is None:
            return Comparison(target, draft, None, None, None)
        index = first_difference(reference.tokens, draft.tokens)
        return Comparison(target, draft, reference, index is None, index)

    def _verdict(self, engine: Engine, prompt_ids: list[int]) -> dict[str, str]:
        comparison = self.comparison
        if comparison.identical is None:
            return {"state": "sampling", "text": "sampled, not compared", "detail": SAMPLED}
        count = len(comparison.draft.tokens)
        if not comparison.identical:
            parted = explain_difference(engine.target, prompt_ids, comparison.reference, comparison.draft)
            gap = "" if parted.gap is None else f", logit gap {abs(parted.gap):.3f}"
            return {"state": "differs", "text": f"differs at token {parted.index + 1}{gap}", "detail": SHAPES}
        verdict = {"state": "identical", "text": f"identical, {count} tokens", "detail": SHAPES}
        parted = explain_difference(engine.target, prompt_ids, comparison.target, comparison.draft)
        if parted is not None:
            gap = "" if parted.gap is None else f" (logit gap {abs(parted.gap):.3f})"
            verdict["note"] = f"one-token forwards part from it at token {parted.index + 1}: a near tie{gap}"
        return verdict

    def _picture(self, phase: str, message: str, verdict: dict[str, str] | None = None) -> dict[str, Any]:
        lanes = {
            name: self._lanes[name].payload(self._traces[name], name in self._done)
            if name in self._lanes
            else empty_lane()
            for name in ("target", "draft")
        }
        return {
            "id": self._id,
            "phase": phase,
            "message": message,
            "prompt": self._settings.prompt,
            "settings": asdict(self._settings),
            "speedup": self.comparison.speedup if self.comparison else None,
            "verdict": verdict,
            "recorded": None,
            **lanes,
        }


def failed(settings: RaceSettings, sentence: str) -> dict[str, Any]:
    """The picture of a race that could not be run."""
    return {
        "id": f"{time.time():.3f}-{next(_numbers)}",
        "phase": "error",
        "message": sentence,
        "prompt": settings.prompt,
        "settings": asdict(settings),
        "speedup": None,
        "verdict": None,
        "recorded": None,
        "target": empty_lane(),
        "draft": empty_lane(),
    }


def _paced(stream: Stream) -> Iterator[None]:
    """Runs the stream and hands over now and then, and at its first token."""
    last = 0.0
    for _ in stream:
        if time.monotonic() - last >= _PICTURE_EVERY:
            yield
            last = time.monotonic()
