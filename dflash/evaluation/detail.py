"""Where drafts died in one decoding: step by step, with how sure the target was. Recorded behind the timed parts.

The target's entropies come from forwards of their own over the finished text, never from the decoding itself: the
decoding stays as it is timed, bit for bit, and entropies exist for sampled texts as well.

Shapes: T emitted tokens, S steps, V vocabulary.
"""

from typing import Any

import torch

from dflash.decoding.pieces import PieceDecoder
from dflash.decoding.trace import Trace
from dflash.target import TargetModel

_DECIMALS = 3  # nats; bf16 rounding moves an entropy by more


def detail_of(target: TargetModel, prompt_ids: list[int], trace: Trace) -> dict[str, Any]:
    """The steps of a decoding with draft as parallel lists, JSON-safe and compact.

    Returns:
        `accepted` [S]: accepted drafts of each step. Step s drafts from emitted position 1 + sum(accepted[:s] + 1) on.
        `missed`, `missed_pieces` [S]: the first refused draft's id and text; None where the block survived, or where
        the text ended before the refused slot. The target's token there is `tokens` at that position.
        `tokens`, `pieces`, `entropy` [T]: every emitted id, its text, and the target's entropy in nats (temperature 1)
        when it chose the token.
    """
    tokens = trace.tokens
    missed, missed_pieces = _missed(target, prompt_ids, trace)
    decoder = PieceDecoder(target.tokenizer, prompt_ids)
    return {
        "accepted": [step.accepted for step in trace.decode_steps],
        "missed": missed,
        "missed_pieces": missed_pieces,
        "tokens": tokens,
        "pieces": [decoder.push(token) for token in tokens],
        "entropy": [round(nats, _DECIMALS) for nats in text_entropy(target, prompt_ids, tokens, trace.block_size)],
    }


@torch.inference_mode()
def text_entropy(target: TargetModel, prompt_ids: list[int], tokens: list[int], width: int) -> list[float]:
    """The target's entropy in nats, at temperature 1, before each of the tokens [T] that follow a prompt.

    The text runs through the target `width` tokens a forward, the shape in which drafts are verified, because in bf16
    another shape rounds otherwise.
    """
    cache = target.new_cache()
    nats: list[float] = []
    for ids in [prompt_ids, *(tokens[at : at + width] for at in range(0, len(tokens) - 1, width))]:
        keep = 1 if not nats else len(ids)
        out = target.forward(torch.tensor([ids], device=target.device), cache, keep_logits=keep)
        nats += _entropy(out.logits[0]).tolist()
    return nats[: len(tokens)]


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of each row of logits [R, V]; fp32, and exactly 0 rather than NaN where p is 0."""
    return torch.special.entr(logits.float().softmax(-1)).sum(-1)


def _missed(target: TargetModel, prompt_ids: list[int], trace: Trace) -> tuple[list[int | None], list[str | None]]:
    decoder = PieceDecoder(target.tokenizer, prompt_ids)
    decoder.push(trace.steps[0].emitted[0])
    ids: list[int | None] = []
    pieces: list[str | None] = []
    for step in trace.decode_steps:
        for token in step.emitted[: step.accepted]:
            decoder.push(token)
        # Neither a block accepted whole nor a text that ended before the refused slot holds a miss.
        died = step.accepted < min(len(step.proposed), len(step.emitted))
        ids.append(step.proposed[step.accepted] if died else None)
        pieces.append(decoder.fork().push(ids[-1]) if died else None)
        for token in step.emitted[step.accepted :]:
            decoder.push(token)
    return ids, pieces
