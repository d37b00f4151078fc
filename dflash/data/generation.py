"""Batched generation with the target, for making training data (not for measured decoding).

A batch is left-padded, prefilled together and stepped together; rows that have finished leave the batch, so that the
tail of a few long answers costs little. Shapes: B rows, P padded prompt length.
"""

import torch

from dflash.target import TargetModel

_NUCLEUS_LIMIT = 512


@torch.inference_mode()
def generate_batch(
    target: TargetModel,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[tuple[list[int], bool]]:
    """Answers to tokenised prompts: for each, its new tokens without the stop token, and whether it stopped itself.

    `temperature` 0 is greedy. Rows do not influence one another beyond bf16 rounding.
    """
    width = max(map(len, prompts))
    pad = next(iter(target.eos_token_ids), 0)
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=target.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=target.device)
    stops = torch.tensor(sorted(target.eos_token_ids), device=target.device)

    cache = target.new_cache()
    answers: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    rows = torch.arange(len(prompts), device=target.device)  # which prompt each batch row belongs to
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    for _ in range(max_new_tokens):
        out = target.forward(ids, cache, keep_logits=1, attention_mask=mask, position_ids=positions)
        chosen = _choose(out.logits[:, -1], temperature, top_p, generator)
        stopped = torch.isin(chosen, stops)
        for row, token, stop in zip(rows.tolist(), chosen.tolist(), stopped.tolist(), strict=True):
            if stop:
                finished[row] = True
            else:
                answers[row].append(token)
        alive = (~stopped).nonzero().flatten()
        if len(alive) == 0:
            break
        if len(alive) < len(rows):
            cache.batch_select_indices(alive)
            rows, chosen, mask, positions = rows[alive], chosen[alive], mask[alive], positions[alive]
        ids = chosen[:, None]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return list(zip(answers, finished, strict=True))


def _choose(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> torch.Tensor:
    """One token per row of `logits` [B, V]: greedy at temperature 0, else nucleus sampling."""
    if temperature == 0:
        return logits.max(-1).indices  # on CPU in bf16 four times faster than argmax
    # The nucleus is looked for among the most likely tokens only: sorting 49,152 columns costs more than the forward.
    top, order = (logits.float() / temperature).topk(min(_NUCLEUS_LIMIT, logits.shape[-1]), dim=-1)
    probs = top.softmax(-1)
    # A token stays while the mass before it is below top_p, so the most likely one always stays.
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0)
    return order.gather(-1, torch.multinomial(probs, 1, generator=generator)).squeeze(-1)
