"""The other ways that a user has on the same target, without a DFlash draft: transformers' own `generate`.

Plain decoding, prompt lookup (n-grams of the text so far are proposed as its continuation) and assisted generation
(an autoregressive model of the same family drafts). They run on another engine than ours, with its caches and its loop
in Python, so their speed is that of the whole engine; `"plain"` tells how much of it is the engine's own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from dflash.decoding.engine import check_length
from dflash.decoding.sampling import Sampling
from dflash.errors import UserError
from dflash.target import TargetModel

WAYS = ("plain", "prompt_lookup", "assistant")
_WARM_UP_PROMPT = 16  # tokens


@dataclass(frozen=True)
class OtherDecoding:
    """One decoding by transformers. Times are seconds; what a listener did with the tokens is not in them.

    `first_tokens` came with the prompt's own forward, which may verify proposals at once; `forwards` counts the
    target's forwards behind that one.
    """

    way: str
    tokens: tuple[int, ...]
    first_tokens: int
    forwards: int
    time_to_first_token_s: float
    seconds: float  # behind the first tokens

    @property
    def decoded_tokens(self) -> int:
        return len(self.tokens) - self.first_tokens

    @property
    def tau(self) -> float:
        """Tokens per forward of the target, the first forward and its tokens left out; 0 when nothing was decoded."""
        return self.decoded_tokens / self.forwards if self.forwards else 0.0

    @property
    def tok_s(self) -> float:
        """Tokens per second behind the first ones; 0 when nothing was decoded."""
        return self.decoded_tokens / self.seconds if self.forwards else 0.0


class TransformersEngine:
    """A target and, for assisted generation, a small autoregressive model with the same tokenizer."""

    def __init__(self, target: TargetModel, assistant: TargetModel | None = None) -> None:
        """
        Raises:
            UserError: target and assistant do not speak the same tokens.
        """
        if assistant is not None:
            check_assistant(target, assistant)
        self.target, self.assistant = target, assistant

    def decode(
        self,
        prompt_ids: list[int],
        *,
        way: str,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        lookup_tokens: int = 10,
        on_tokens: Callable[[list[int]], None] | None = None,
    ) -> OtherDecoding:
        """Decode one prompt.

        Args:
            way: one of `WAYS`.
            sampling: temperature and seed; there is no verification rule to choose here.
            lookup_tokens: tokens that prompt lookup proposes at most.
            on_tokens: is called with the new ids of every step; what it raises ends the decoding within that step.

        Raises:
            UserError: an argument is out of range, prompt and new tokens exceed the context, there is no assistant.
        """
        check_length(self.target, len(prompt_ids), max_new_tokens)
        self._check_way(way, lookup_tokens)
        config = _generation_config(self.target, sampling, max_new_tokens)
        if way == "prompt_lookup":
            config.prompt_lookup_num_tokens = lookup_tokens
        assistant = {"assistant_model": self.assistant.model} if way == "assistant" else {}
        clock = _Clock(self.target, on_tokens)
        forwards = 0

        def count(*_) -> None:
            nonlocal forwards
            forwards += 1

        ids = torch.tensor([prompt_ids], device=self.target.device)
        counting = self.target.model.register_forward_pre_hook(count)
        try:
            # transformers draws from torch's global generators, which are as they were afterwards.
            with torch.random.fork_rng(devices=_cuda_devices(self.target)):
                torch.manual_seed(sampling.seed)
                clock.start()
                self.target.model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=clock, **assistant
                )
        finally:
            counting.remove()
        first = clock.batches[0]
        tokens = tuple(token for batch in clock.batches for token in batch)
        return OtherDecoding(way, tokens, len(first), forwards - 1, clock.first_s, clock.last_s - clock.first_s)

    def warm_up(self, way: str, lookup_tokens: int = 10) -> None:
        """Run every kind of forward once, since the first of a kind is slow."""
        prompt = [0] * min(_WARM_UP_PROMPT, self.target.max_length // 2)
        self.decode(prompt, way=way, max_new_tokens=4, lookup_tokens=lookup_tokens)

    def _check_way(self, way: str, lookup_tokens: int) -> None:
        if way not in WAYS:
            raise UserError(f"Unknown way {way!r}: choose one of {', '.join(WAYS)}.")
        if way == "prompt_lookup" and not 1 <= lookup_tokens <= 64:
            raise UserError(f"lookup_tokens {lookup_tokens} must lie between 1 and 64.")
        if way == "assistant" and self.assistant is None:
            raise UserError("There is no small model to assist: give its folder or Hugging Face id.")


def load_assistant(name: str, target: TargetModel) -> TargetModel:
    """A small autoregressive model for assisted generation, in the target's dtype and on its device.

    Raises:
        UserError: there is none under that name, or its tokens are not the target's.
    """
    try:
        assistant = TargetModel.load(name, dtype=str(target.dtype).removeprefix("torch."), device=target.device)
    except UserError as error:
        reason = str(error)
        raise UserError(f"The small model cannot be used: {reason[0].lower()}{reason[1:]}") from error
    check_assistant(target, assistant)
    return assistant


def check_assistant(target: TargetModel, assistant: TargetModel) -> None:
    """Both must mean the same text by the same ids.

    Raises:
        UserError: they do not; the sentence says how far apart they are.
    """
    ours, theirs = target.tokenizer.get_vocab(), assistant.tokenizer.get_vocab()
    differing = len(ours.items() ^ theirs.items())
    advice = "give a smaller model of the target's own family."
    if differing:
        raise UserError(
            f"Small model {assistant.name!r} has another tokenizer than target {target.name!r} "
            f"({differing:,} entries of their vocabularies differ): {advice}"
        )
    if assistant.vocab_size != target.vocab_size:
        raise UserError(
            f"Small model {assistant.name!r} scores {assistant.vocab_size:,} tokens and target {target.name!r} "
            f"{target.vocab_size:,}: {advice}"
        )


def _generation_config(target: TargetModel, sampling: Sampling, max_new_tokens: int) -> GenerationConfig:
    """Every setting that changes a text is given: what is left out would be filled in from the model's own file."""
    stop = sorted(target.eos_token_ids)
    config = GenerationConfig(
        do_sample=not sampling.greedy,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=stop or None,
        pad_token_id=stop[0] if stop else 0,
    )
    if not sampling.greedy:
        config.update(temperature=sampling.temperature, top_k=0, top_p=1.0)
    return config


def _cuda_devices(target: TargetModel) -> list[torch.device]:
    return [target.device] if target.device.type == "cuda" else []


class _Clock(BaseStreamer):
    """Takes down the ids of every step and when they came, without the time that listeners take."""

    def __init__(self, target: TargetModel, listener: Callable[[list[int]], None] | None) -> None:
        self.batches: list[list[int]] = []
        self.first_s = self.last_s = 0.0
        self._device, self._listener = target.device, listener
        self._prompt_seen = False

    def start(self) -> None:
        self._began = self._now()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate sends the prompt first
            self._prompt_seen = True
            return
        self.last_s = self._now() - self._began
        if not self.batches:
            self.first_s = self.last_s
        self.batches.append(value.flatten().tolist())
        if self._listener is not None:
            before = time.perf_counter()
            self._listener(self.batches[-1])
            self._began += time.perf_counter() - before

    def end(self) -> None:
        """Nothing is held back."""

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
