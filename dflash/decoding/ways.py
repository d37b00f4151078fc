"""Several ways to decode one prompt with one target, timed in turns on one machine and checked against plain decoding.

Ways of our own engine (the target alone, drafts at any block size) and of transformers (plain, prompt lookup, a small
autoregressive model) stand side by side. Every round runs each way once, in alternating order, so that what the
machine does meanwhile meets all of them; a speed-up is the median over rounds of the ratio within a round.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dflash.decoding.comparison import Difference, explain_difference, first_difference
from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling
from dflash.decoding.trace import Step, Trace
from dflash.decoding.transformers_engine import WAYS as TRANSFORMERS_WAYS
from dflash.decoding.transformers_engine import TransformersEngine
from dflash.errors import UserError
from dflash.target import TargetModel

KINDS = ("target", "draft", *TRANSFORMERS_WAYS)
MAX_ROUNDS = 9
MAX_WAYS = 12


@dataclass(frozen=True)
class Way:
    """One way to decode. `draft`, `block_size` (0: the draft's own) and `rule` belong to kind "draft" only,
    `lookup_tokens` to "prompt_lookup", `assistant` (a folder or id) to "assistant"."""

    kind: str
    temperature: float = 0.0
    seed: int = 0
    draft: str = ""
    block_size: int = 0
    rule: str = "target"
    lookup_tokens: int = 10
    assistant: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"Unknown way {self.kind!r}: choose one of {', '.join(KINDS)}.")

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, rule=self.rule, seed=self.seed)

    @property
    def engine(self) -> str:
        """"dflash" (this one) or "transformers" (another: its own caches, its own loop)."""
        return "transformers" if self.kind in TRANSFORMERS_WAYS else "dflash"


@dataclass(frozen=True)
class Measured:
    """What a way did. Lists have one entry per round; the text is that of the last one.

    `identical` compares token ids with plain greedy decoding by our engine: in the block's shape for drafts, which is
    exact, one token per forward for transformers, whose forwards round as they fall. None: sampled, or the yardstick.
    """

    way: Way
    tokens: tuple[int, ...]
    forwards: int  # of the target, behind the first one
    tau: float
    tok_s: tuple[float, ...]
    time_to_first_token_s: tuple[float, ...]
    speedups: tuple[float, ...]  # of each round, against the target alone with the same sampling
    identical: bool | None = None
    difference: Difference | None = None

    @property
    def speedup(self) -> float | None:
        """Median over rounds; None when nothing was decoded."""
        return statistics.median(self.speedups) if self.speedups else None


class Lineup:
    """The ways that are compared on one prompt, each ready to run."""

    def __init__(
        self,
        ways: Sequence[Way],
        *,
        engine_of: Callable[[str], Engine],
        assistant_of: Callable[[str], TargetModel],
        lookup: Callable[[], TargetModel],
    ) -> None:
        """Load what the ways need, and warm up what was not run before. The target alone is added where it is missing.

        Args:
            engine_of: a warm engine for the name of a draft.
            assistant_of: the small model of a name.
            lookup: the target.

        Raises:
            UserError: a way cannot be run, or there are too many.
        """
        asked = list(dict.fromkeys(ways))
        if len(asked) > MAX_WAYS:
            raise UserError(f"{len(asked)} ways are too many for one comparison: choose at most {MAX_WAYS}.")
        yardsticks = dict.fromkeys(yardstick(way) for way in asked)
        self.ways = [*yardsticks, *(way for way in asked if way not in yardsticks)]
        self.target = lookup()
        self._engines = {way: engine_of(way.draft) for way in self.ways if way.kind == "draft"}
        self._plain = next(iter(self._engines.values()), None) or Engine(self.target)
        self._others: dict[Way, TransformersEngine] = {}
        for way in self.ways:
            if way.engine == "transformers":
                assistant = assistant_of(way.assistant) if way.kind == "assistant" else None
                self._others[way] = TransformersEngine(self.target, assistant)
        self._warm_up()

    def run(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        rounds: int = 1,
        *,
        tick: Callable[[Way, int], None] = lambda way, round_number: None,
        show: Callable[[list[Measured]], None] = lambda measured: None,
    ) -> list[Measured]:
        """Decode the prompt `rounds` times in every way, and check each greedy text.

        Args:
            tick: called after every step with the way that runs and the round, from 1, outside the timing; what it
                raises ends the run within that step.
            show: called after every way of every round with what is known so far.

        Raises:
            UserError: rounds are out of range, or a way refuses the prompt.
        """
        check_rounds(rounds)
        done: dict[Way, list[_Once]] = {way: [] for way in self.ways}
        for number in range(1, rounds + 1):
            for way in self.ways if number % 2 else reversed(self.ways):
                done[way].append(self._once(way, prompt_ids, max_new_tokens, lambda: tick(way, number)))
                show(_measured(done))
        measured = []
        for row in _measured(done):
            measured.append(self._checked(row, done, prompt_ids, max_new_tokens, lambda: tick(row.way, rounds)))
            show([*measured, *_measured(done)[len(measured) :]])
        return measured

    def _warm_up(self) -> None:
        for way, engine in self._others.items():
            engine.warm_up(way.kind, way.lookup_tokens)
        if not self._engines:
            self._plain.warm_up()

    def _once(self, way: Way, prompt_ids: list[int], max_new_tokens: int, tick: Callable[[], None]) -> "_Once":
        options = {"max_new_tokens": max_new_tokens, "sampling": way.sampling}
        if way.engine == "transformers":
            found = self._others[way].decode(
                prompt_ids, way=way.kind, lookup_tokens=way.lookup_tokens, on_tokens=lambda _: tick(), **options
            )
            return _Once(found.tokens, found.forwards, found.tau, found.tok_s, found.time_to_first_token_s)
        if way.kind == "target":
            stream = self._plain.decode_target(prompt_ids, **options)
        else:
            stream = self._engines[way].decode_draft(prompt_ids, block_size=way.block_size or None, **options)
        try:
            for _ in stream:
                tick()
        finally:
            stream.close()
        trace = stream.trace
        return _Once(
            tuple(trace.tokens), len(trace.decode_steps), trace.tau, trace.tok_s, trace.time_to_first_token_s,
            trace.block_size,
        )

    def _checked(
        self,
        row: Measured,
        done: dict[Way, list["_Once"]],
        prompt_ids: list[int],
        max_new_tokens: int,
        tick: Callable[[], None],
    ) -> Measured:
        """The row with its verdict, for greedy decoding."""
        if row.way.kind == "target" or not row.way.sampling.greedy:
            return row
        if row.way.kind == "draft":
            reference = self._in_block_shape(prompt_ids, max_new_tokens, done[row.way][-1].width, tick)
        else:
            reference = done[yardstick(row.way)][-1].tokens
        if first_difference(list(reference), list(row.tokens)) is None:
            return replace(row, identical=True)
        found = explain_difference(self.target, prompt_ids, _text(reference), _text(row.tokens))
        return replace(row, identical=False, difference=found)

    def _in_block_shape(
        self, prompt_ids: list[int], max_new_tokens: int, width: int, tick: Callable[[], None]
    ) -> tuple[int, ...]:
        plain = Engine(self.target)  # without a draft, whose own block may be smaller than another's
        stream = plain.decode_target(prompt_ids, max_new_tokens=max_new_tokens, shape="block", block_size=width)
        try:
            for _ in stream:
                tick()
        finally:
            stream.close()
        return tuple(stream.trace.tokens)


@dataclass(frozen=True)
class _Once:
    """One decoding in one round; `width` is the block's, 1 for plain decoding."""

    tokens: tuple[int, ...]
    forwards: int
    tau: float
    tok_s: float
    time_to_first_token_s: float
    width: int = 1


def yardstick(way: Way) -> Way:
    """What a way's speed is taken against: our target alone, one token per forward, with the same sampling."""
    return Way("target", temperature=way.temperature, seed=way.seed if way.temperature else 0)


def check_rounds(rounds: int) -> None:
    """
    Raises:
        UserError: rounds are out of range.
    """
    if not 1 <= rounds <= MAX_ROUNDS:
        raise UserError(f"{rounds} rounds are not possible: choose 1 to {MAX_ROUNDS}.")


def other_ways(temperature: float, seed: int, lookup_tokens: int, assistant: str) -> list[Way]:
    """What transformers offers on the same target: plain decoding, and prompt lookup and a small model if asked for.

    Plain decoding is always among them: it says how fast that engine is by itself.
    """
    shared = {"temperature": temperature, "seed": seed if temperature else 0}
    ways = []
    if lookup_tokens:
        ways.append(Way("prompt_lookup", lookup_tokens=lookup_tokens, **shared))
    if assistant.strip():
        ways.append(Way("assistant", assistant=assistant.strip(), **shared))
    return [Way("plain", **shared), *ways] if ways else []


def _measured(done: dict[Way, list[_Once]]) -> list[Measured]:
    return [_row(way, runs, done[yardstick(way)]) for way, runs in done.items() if runs]


def _row(way: Way, runs: list[_Once], plain: list[_Once]) -> Measured:
    # A round is under way: those that have no partner yet wait for it.
    ratios = [mine.tok_s / other.tok_s for mine, other in zip(runs, plain, strict=False) if mine.tok_s and other.tok_s]
    last = runs[-1]
    return Measured(
        way,
        last.tokens,
        last.forwards,
        last.tau,
        tuple(run.tok_s for run in runs),
        tuple(run.time_to_first_token_s for run in runs),
        tuple(ratios),
    )


def _text(tokens: Sequence[int]) -> Trace:
    """Tokens as a trace, for what needs no more than them."""
    steps = [Step(i, [], 0, token, [token], 0.0, 0.0, 0.0) for i, token in enumerate(tokens)]
    return Trace("target", 0, 1, steps=steps)
