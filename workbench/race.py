"""The race behind the Decode page: target alone, draft + target, then the lossless check, streamed to the page."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

from dflash.decoding.comparison import Comparison, explain_difference, first_difference
from dflash.decoding.engine import Engine, Stream
from dflash.decoding.prompt import render_prompt
from dflash.decoding.trace import Trace
from dflash.evaluation.machine import describe_machine
from workbench.bench import Bench
from workbench.beside import Beside
from workbench.lane import Lane, empty_lane
from workbench.race_record import SHAPES, RaceRecord, picture_of, record_of
from workbench.race_settings import RaceSettings

# Seconds between two pictures sent to the page. Time spent on them is not counted by the engine.
_PICTURE_EVERY = 0.1
_numbers = itertools.count(1)

_MESSAGES = {
    "target": "The target decodes alone …",
    "draft": "Now the draft proposes and the target verifies …",
}


class Race:
    """One race under way. `run` yields what the page draws, about ten times a second; `record` is there at its end."""

    def __init__(self, bench: Bench, settings: RaceSettings) -> None:
        self.id = new_id()
        self.record: RaceRecord | None = None
        self._bench, self._settings = bench, settings
        self._beside = Beside(bench.runs)
        self._lanes: dict[str, Lane] = {}
        self._traces: dict[str, Trace] = {}
        self._done: set[str] = set()

    def run(self) -> Iterator[dict[str, Any]]:
        """Pictures of the race; closing the generator stops decoding after the step in flight.

        Raises:
            UserError: target, draft, prompt or settings cannot be used.
        """
        settings = self._settings
        sampling, messages = settings.sampling(), settings.messages()
        if not self._bench.is_ready(settings.draft):
            yield self.picture("loading", f"Loading {self._bench.target_name} and its draft …")
        engine = self._bench.engine(settings.draft)
        prompt_ids = render_prompt(engine.target, messages, max_new_tokens=settings.max_new_tokens)
        options = {"max_new_tokens": settings.max_new_tokens, "sampling": sampling}
        # Both streams are made before anything is decoded: bad settings are refused at once.
        alone = engine.decode_target(prompt_ids, **options)
        drafted = engine.decode_draft(prompt_ids, block_size=settings.block_size or None, **options)
        for name, stream in (("target", alone), ("draft", drafted)):
            self._beside.look()
            yield self.picture(name, _MESSAGES[name])
            yield from self._lane(name, engine, stream, prompt_ids)
            self._beside.look()
        reference = None
        if sampling.greedy:
            width = self._traces["draft"].block_size
            stream = engine.decode_target(prompt_ids, shape="block", block_size=width, **options)
            yield from self._check(stream)
            reference = stream.trace
        self.record = self._record(engine, prompt_ids, reference)
        yield picture_of(self.record, self.id)

    def answer(self) -> str:
        """What draft and target said together, as text for the conversation."""
        tokenizer = self._bench.target.tokenizer
        return tokenizer.decode(self._traces["draft"].tokens, skip_special_tokens=True).strip()

    def picture(self, phase: str, message: str, verdict: dict[str, str] | None = None) -> dict[str, Any]:
        """What the page draws before the end."""
        lanes = {
            name: self._lanes[name].payload(self._traces[name], name in self._done)
            if name in self._lanes
            else empty_lane()
            for name in ("target", "draft")
        }
        told = {"verdict": verdict, "beside": self._beside.sentence}
        return _blank(self.id, phase, message, self._settings) | told | lanes

    def _lane(self, name: str, engine: Engine, stream: Stream, prompt_ids: list[int]) -> Iterator[dict[str, Any]]:
        self._traces[name] = stream.trace
        lane = self._lanes[name] = Lane(engine.target.tokenizer, prompt_ids)
        try:
            for _ in _paced(stream):
                lane.take(stream.trace)
                yield self.picture(name, _MESSAGES[name])
        finally:
            stream.close()
        lane.take(stream.trace)
        self._done.add(name)

    def _check(self, stream: Stream) -> Iterator[dict[str, Any]]:
        pending = {"state": "pending", "text": "checking", "detail": SHAPES}
        words = "Checking against plain decoding in the block's shape"
        try:
            for _ in _paced(stream):
                yield self.picture("check", f"{words}: {len(stream.trace.tokens)} tokens …", pending)
        finally:
            stream.close()

    def _record(self, engine: Engine, prompt_ids: list[int], reference: Trace | None) -> RaceRecord:
        target, draft = self._traces["target"], self._traces["draft"]
        difference = one_token = None
        if reference is not None:
            difference = explain_difference(engine.target, prompt_ids, reference, draft)
            one_token = explain_difference(engine.target, prompt_ids, target, draft)
        index = first_difference(reference.tokens, draft.tokens) if reference else None
        return record_of(
            self._settings.to_dict(),
            Comparison(target, draft, reference, None if reference is None else index is None, index),
            {name: lane.texts for name, lane in self._lanes.items()},
            (difference, one_token),
            target_name=self._bench.target_name,
            machine=describe_machine(engine),
            beside=self._beside.sentence,
        )


def failed(settings: RaceSettings, sentence: str) -> dict[str, Any]:
    """The picture of a race that could not be run."""
    return _blank(new_id(), "error", sentence, settings) | {"target": empty_lane(), "draft": empty_lane()}


def new_id() -> str:
    """Tells one picture's race from another's."""
    return f"{time.time():.3f}-{next(_numbers)}"


def _blank(race_id: str, phase: str, message: str, settings: RaceSettings) -> dict[str, Any]:
    return {
        "id": race_id,
        "phase": phase,
        "message": message,
        "prompt": settings.prompt,
        "settings": settings.to_dict(),
        "speedup": None,
        "verdict": None,
        "beside": "",
        "recorded": None,
    }


def _paced(stream: Stream) -> Iterator[None]:
    """Runs the stream and hands over now and then, and at its first token."""
    last = 0.0
    for _ in stream:
        if time.monotonic() - last >= _PICTURE_EVERY:
            yield
            last = time.monotonic()
