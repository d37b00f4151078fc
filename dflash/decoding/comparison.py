"""Target alone against draft + target on one prompt: the same text, and how much sooner."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling, most_likely
from dflash.decoding.trace import Step, Trace
from dflash.target import TargetModel


@dataclass(frozen=True)
class Difference:
    """The first emitted token (0-based `index`) where two texts differ; None for a text that has ended.

    `gap` is by how many logits one-token shape prefers `first` to `second` there (None when a text has ended). A gap
    within rounding (up to about 0.5 in bf16) is two shapes breaking a near tie differently, not an error.
    """

    index: int
    first: int | None
    second: int | None
    gap: float | None


@dataclass(frozen=True)
class Comparison:
    """Both decodings of one prompt, and what follows from them.

    `reference` is plain greedy decoding in the block's shape, which the draft must equal: `identical` says whether it
    does and `first_difference` where not. Both are None when sampling or when the reference was not asked for.
    """

    target: Trace
    draft: Trace
    reference: Trace | None
    identical: bool | None
    first_difference: int | None

    @property
    def speedup(self) -> float | None:
        """Tokens per second with the draft over those of the target in its fastest shape; None: nothing was decoded."""
        return self.draft.tok_s / self.target.tok_s if self.target.tok_s and self.draft.tok_s else None


def compare(
    engine: Engine,
    prompt_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    block_size: int | None = None,
    *,
    draft_first: bool = False,
    with_reference: bool = True,
) -> Comparison:
    """Decode a prompt with the target alone and with the draft, one after the other.

    Args:
        draft_first: the order of the two; alternate it over many prompts to be fair to both.
        with_reference: also decode the reference for the lossless check (greedy only), behind the timed pair.
    """
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling}
    if draft_first:
        draft = engine.decode_draft(prompt_ids, block_size=block_size, **options).finish()
        target = engine.decode_target(prompt_ids, **options).finish()
    else:
        target = engine.decode_target(prompt_ids, **options).finish()
        draft = engine.decode_draft(prompt_ids, block_size=block_size, **options).finish()
    if not (with_reference and sampling.greedy):
        return Comparison(target, draft, None, None, None)
    reference = engine.decode_target(prompt_ids, shape="block", block_size=draft.block_size, **options).finish()
    index = first_difference(reference.tokens, draft.tokens)
    return Comparison(target, draft, reference, index is None, index)


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Index of the first differing token; None when equal. A text that ends early differs where it ends."""
    shared = min(len(first), len(second))
    index = next((i for i in range(shared) if first[i] != second[i]), shared)
    return None if index == len(first) == len(second) else index


def explain_difference(target: TargetModel, prompt_ids: list[int], first: Trace, second: Trace) -> Difference | None:
    """Where two decodings of one prompt part, with the logit gap there; None when they are equal."""
    a, b = first.tokens, second.tokens
    index = first_difference(a, b)
    if index is None:
        return None
    if index >= min(len(a), len(b)):
        return Difference(index, *(tokens[index] if index < len(tokens) else None for tokens in (a, b)), None)
    *_, logits = _one_token_logits(target, prompt_ids, a[: index + 1])
    return Difference(index, a[index], b[index], float(logits[a[index]] - logits[b[index]]))


def with_shape_gaps(target: TargetModel, prompt_ids: list[int], trace: Trace) -> Trace:
    """A greedy trace with `Step.gap` filled in: where one-token shape, given the same text, would choose otherwise.

    Runs one-token forwards over the emitted text, after the decoding and outside its timing.
    """
    logits = _one_token_logits(target, prompt_ids, trace.tokens)
    return replace(trace, steps=[_with_gap(step, [next(logits) for _ in step.emitted]) for step in trace.steps])


def _with_gap(step: Step, rows: list[torch.Tensor]) -> Step:
    for token, logits in zip(step.emitted, rows, strict=True):
        if int(most_likely(logits)) != token:
            return replace(step, gap=float(logits.max() - logits[token]))
    return replace(step, gap=None)


def _one_token_logits(target: TargetModel, prompt_ids: list[int], following: list[int]) -> Iterator[torch.Tensor]:
    """Logits [V] in fp32 behind the prompt and behind each following token but the last, one token per forward."""
    cache = target.new_cache()
    for ids in [prompt_ids, *([token] for token in following[:-1])]:
        out = target.forward(torch.tensor([ids], device=target.device), cache, keep_logits=1)
        yield out.logits[0, -1].float()
