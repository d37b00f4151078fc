"""Decoded tau during training: a few prompts, really decoded with the weights as they are now.

The estimate that comes with the loss judges blocks on given text; this is what serving would see.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dflash.config import MetricsConfig
from dflash.data.conversations import read_prompts
from dflash.data.template import Rendered
from dflash.decoding.engine import Engine, Stream, check_length
from dflash.decoding.prompt import render_prompt
from dflash.errors import UserError
from dflash.evaluation.acceptance import AcceptanceCounts
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel


class DecodedTau:
    """Decodes the same prompts every time it is asked, so that its numbers can be compared along a run."""

    def __init__(self, config: MetricsConfig, target: TargetModel, prompts: Sequence[Sequence[int]]) -> None:
        """`prompts` are ids up to where the answer begins, as from `prompts_for`."""
        self._config, self._target = config, target
        self._prompts = [list(prompt) for prompt in prompts]
        for prompt in self._prompts:
            check_length(target, len(prompt), config.decode_tokens)

    def measure(self, draft: DFlashDraft, hurry: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Decode greedily until all prompts are done or `metrics.decode_seconds` have passed (seen between steps).

        Args:
            draft: any dtype and device, all its weights on this rank (not sharded). It is copied, never touched, and
                no random number is drawn, so that training goes on as if nothing had happened.
            hurry: asked between steps; once it says True, the time is up.

        Returns:
            One flat record for the metrics. `decoded_tau` is None when the time allowed no step. It pools all finished
            steps, also those of the prompt that the time cut short; `decoded_complete` out of `decoded_prompts` were
            finished. `decoded_reached[k - 1]` of `decoded_steps` steps accepted position k and all before it.
        """
        started = time.monotonic()
        deadline = started + self._config.decode_seconds
        engine = Engine(self._target, decoding_copy(draft, self._target))
        counts = AcceptanceCounts((0,) * draft.config.block_size)
        complete = tokens = 0
        for prompt in self._prompts:
            stream = engine.decode_draft(prompt, max_new_tokens=self._config.decode_tokens)
            _run_until(stream, lambda: time.monotonic() >= deadline or hurry())
            trace = stream.trace
            counts += AcceptanceCounts(tuple(trace.accepted_histogram))
            tokens += trace.decoded_tokens
            if not (trace.stopped or len(trace.tokens) == self._config.decode_tokens):
                break
            complete += 1
        return {
            "decoded_tau": counts.tau,
            "decoded_prompts": len(self._prompts),
            "decoded_complete": complete,
            "decoded_tokens": tokens,
            "decoded_steps": counts.steps,
            "decoded_reached": [position.hits for position in counts.cumulative],
            "decoded_seconds": time.monotonic() - started,
        }


def prompts_for(config: MetricsConfig, target: TargetModel, held_out: Sequence[Rendered]) -> list[list[int]]:
    """The `metrics.decode_count` prompts to decode: those of `metrics.decode_prompts`, else of held-out conversations.

    A held-out conversation gives everything before its last answer. Conversations that leave no room for
    `metrics.decode_tokens` in the target's context, or that have nothing before the answer, are passed over.

    Raises:
        UserError: the file cannot be read, one of its prompts is too long, or no conversation is of use.
    """
    if config.decode_prompts is not None:
        prompts = read_prompts(config.decode_prompts, config.decode_count)
        return [render_prompt(target, prompt.turns[:1], max_new_tokens=config.decode_tokens) for prompt in prompts]
    room = target.max_length - config.decode_tokens
    candidates = (_before_last_answer(conversation) for conversation in held_out)
    found = [prompt for prompt in candidates if 0 < len(prompt) <= room][: config.decode_count]
    if not found:
        raise UserError(
            f"None of {len(held_out)} held-out conversations can be decoded with metrics.decode_tokens = "
            f"{config.decode_tokens} in {target.max_length} tokens of context: lower it, or set metrics.decode_prompts."
        )
    return found


def _before_last_answer(conversation: Rendered) -> list[int]:
    """Ids up to the last run of supervised tokens; empty when there is none."""
    mask = conversation.loss_mask
    begin = next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), 0)
    while begin > 0 and mask[begin - 1]:
        begin -= 1
    return conversation.input_ids[:begin]


def _run_until(stream: Stream, over: Callable[[], bool]) -> None:
    """Run a decoding to its end, or close it behind the first step after which its time is over."""
    for _ in stream:
        if over():
            stream.close()


def decoding_copy(draft: DFlashDraft, target: TargetModel) -> DFlashDraft:
    """The draft as decoding wants it: the target's dtype and device, no gradients."""
    devices = [target.device] if target.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # building a draft draws initial weights
        copy = DFlashDraft(draft.config)
    copy.load_state_dict(draft.state_dict())
    copy.vocabulary = draft.vocabulary
    return copy.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)
