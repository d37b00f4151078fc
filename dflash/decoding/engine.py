"""The engine: the target alone and draft + target, decoded and timed by the same code."""

from collections.abc import Collection, Iterator

from transformers.cache_utils import DynamicLayer

from dflash.cache import GrowingLayer
from dflash.decoding.proposer import DraftProposer, Proposer
from dflash.decoding.sampling import Sampling
from dflash.decoding.session import Session
from dflash.decoding.trace import Step, Trace
from dflash.errors import UserError
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

_WARM_UP_PROMPT = 16  # tokens


class Stream:
    """The steps of one decoding, one by one as they happen; `trace` grows with them.

    Time between steps belongs to the consumer and is not counted. `close()` ends the decoding and frees its memory.
    """

    def __init__(self, session: Session) -> None:
        self.trace = session.trace
        self._steps = session.run()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        self._steps.close()

    def finish(self) -> Trace:
        """Run to the end and return the trace."""
        for _ in self:
            pass
        return self.trace


class Engine:
    """A target and, for speculative decoding, a proposer made from the draft (any `Proposer` will do)."""

    def __init__(
        self, target: TargetModel, draft: DFlashDraft | None = None, *, proposer: Proposer | None = None
    ) -> None:
        if draft is not None:
            draft.check_target(target)
            _check_dtype(target, draft)
            proposer = DraftProposer(target, draft)
        self.target, self.draft, self.proposer = target, draft, proposer

    def decode_target(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        shape: str = "token",
        block_size: int | None = None,
        stop_ids: Collection[int] | None = None,
    ) -> Stream:
        """Decode with the target alone.

        Args:
            prompt_ids: the rendered prompt.
            max_new_tokens: tokens to emit at most, the prefill's one included.
            shape: "token" runs one token per forward, the fastest plain decoding; "block" pads every forward to
                `block_size` tokens, the reference that draft decoding equals token for token.
            stop_ids: ids that end the text, themselves included in it; None takes the target's end-of-text ids.

        Raises:
            UserError: an argument is out of range, or prompt and new tokens exceed the target's context.
        """
        if shape not in ("token", "block"):
            raise UserError(f"Unknown shape {shape!r}: choose 'token' or 'block'.")
        width = 1 if shape == "token" else self._block_size(block_size)
        return self._stream(None, prompt_ids, width, max_new_tokens, sampling, stop_ids)

    def decode_draft(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        block_size: int | None = None,
        stop_ids: Collection[int] | None = None,
    ) -> Stream:
        """Decode with the draft proposing `block_size - 1` tokens a step and the target verifying them.

        Arguments and errors as in `decode_target`; `block_size` may be at most the draft's own (None takes that).
        """
        if self.proposer is None:
            raise UserError("This engine has no draft: load one to decode speculatively.")
        return self._stream(
            self.proposer, prompt_ids, self._block_size(block_size), max_new_tokens, sampling, stop_ids
        )

    def warm_up(self, block_size: int | None = None) -> None:
        """Run every kind of forward once, since the first of a kind is slow (weights packed, kernels chosen)."""
        prompt = [0] * min(_WARM_UP_PROMPT, self.target.max_length // 2)
        options = {"max_new_tokens": 2, "stop_ids": ()}
        for _ in range(2):
            self.decode_target(prompt, **options).finish()
            if self.proposer is not None:
                self.decode_draft(prompt, block_size=block_size, **options).finish()

    def _stream(
        self,
        proposer: Proposer | None,
        prompt_ids: list[int],
        width: int,
        max_new_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int] | None,
    ) -> Stream:
        check_length(self.target, len(prompt_ids), max_new_tokens)
        if width > 1:
            _check_croppable(self.target)
        return Stream(
            Session(
                self.target,
                proposer,
                list(prompt_ids),
                width=width,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop_ids=self.target.eos_token_ids if stop_ids is None else frozenset(stop_ids),
            )
        )

    def _block_size(self, asked: int | None) -> int:
        largest = self.proposer.block_size if self.proposer else None
        size = largest if asked is None else asked
        if size is None:
            raise UserError("block_size is not set, and there is no draft to take it from: give a number of tokens.")
        if size < 2:
            raise UserError(f"block_size {size} leaves nothing to draft: it must be at least 2.")
        if largest is not None and size > largest:
            raise UserError(f"block_size {size} is larger than the draft's {largest}: choose 2 to {largest}.")
        return size


def check_length(target: TargetModel, prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuse what cannot be decoded within the target's context.

    Raises:
        UserError: the prompt is empty, nothing is asked for, or both together are too long.
    """
    if prompt_tokens == 0:
        raise UserError("The prompt is empty: write at least one word.")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens {max_new_tokens} must be at least 1.")
    if prompt_tokens + max_new_tokens > target.max_length:
        raise UserError(
            f"The prompt's {prompt_tokens} tokens and {max_new_tokens} new ones exceed the {target.max_length} tokens "
            f"of context that {target.name!r} has: shorten the prompt or lower max_new_tokens."
        )


def _check_dtype(target: TargetModel, draft: DFlashDraft) -> None:
    weight = draft.fc.weight
    if (weight.dtype, weight.device) != (target.dtype, target.device):
        raise UserError(
            f"The draft is {weight.dtype} on {weight.device}, the target {target.dtype} on {target.device}: "
            "load both with the same dtype and device."
        )


def _check_croppable(target: TargetModel) -> None:
    """Verification takes rejected tokens back out of the cache, which recurrent and rolling states cannot do."""
    kinds = {type(layer) for layer in target.new_cache().layers} - {GrowingLayer, DynamicLayer}
    if kinds:
        raise UserError(
            f"Target {target.name!r} keeps {', '.join(sorted(kind.__name__ for kind in kinds))} states, which cannot "
            "take back rejected tokens: only plain decoding in one-token shape works with it."
        )
