"""Three realisations of masked dual-source attention over the blocks of a plan; a test asserts that they agree.

Each is built once per step and called by every layer with
    query           [B, heads, N*K, D]
    context k, v    [B, kv_heads, S, D]
    draft k, v      [B, kv_heads, N*K, D]
and returns [B, heads, N*K, D]. Dropped blocks give zeros.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F

from dflash.blocks.mask import dense_mask, flex_block_mask, sees_context, sees_slot
from dflash.blocks.plan import BlockPlan

# Rows are padded to multiples of 128 tokens, so rows of 32768 have 256 lengths, with a gradient and without one.
_MOST_SHAPES = 4096


class BlockAttention(Protocol):
    def __call__(
        self,
        query: torch.Tensor,
        context_key: torch.Tensor,
        context_value: torch.Tensor,
        draft_key: torch.Tensor,
        draft_value: torch.Tensor,
    ) -> torch.Tensor: ...


class DenseAttention:
    """The reference: one boolean mask over everything, scaled dot-product attention. Memory grows with (N*K)^2."""

    def __init__(self, plan: BlockPlan, window: int | None = None) -> None:
        self.mask = dense_mask(plan, window)[:, None]
        self.alive = _alive_slots(plan)

    def __call__(self, query, context_key, context_value, draft_key, draft_value):
        groups = query.shape[1] // context_key.shape[1]
        key = torch.cat([context_key, draft_key], dim=2).repeat_interleave(groups, dim=1)
        value = torch.cat([context_value, draft_value], dim=2).repeat_interleave(groups, dim=1)
        # A row that sees nothing would be 0/0; let it see everything and clear it afterwards.
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask | ~self.alive)
        return out * self.alive


class FlexAttention:
    """FlexAttention with a BlockMask: tiles in which nothing is visible are skipped. The default on GPUs."""

    def __init__(self, plan: BlockPlan, window: int | None = None) -> None:
        self.block_mask = flex_block_mask(plan, window)

    def __call__(self, query, context_key, context_value, draft_key, draft_value):
        key = torch.cat([context_key, draft_key], dim=2)
        value = torch.cat([context_value, draft_value], dim=2)
        # Inside a compiled layer the kernel is compiled with it.
        compiled = query.is_cuda and not torch.compiler.is_compiling()
        kernel = compiled_flex_attention() if compiled else _flex_attention()
        return kernel(query, key, value, block_mask=self.block_mask, enable_gqa=True)


class SplitAttention:
    """Exact attention without the draft-by-draft part: the default on CPUs.

    Scores against the context come from one product for all slots, scores inside blocks from one small product per
    block; one softmax runs over both. Work and memory grow with N*K*(S + K) instead of N*K*(S + N*K).
    """

    def __init__(self, plan: BlockPlan, window: int | None = None) -> None:
        batch, blocks, size = plan.labels.shape
        device = plan.anchors.device
        slots = torch.arange(size, device=device)
        context = torch.arange(plan.sequence_length, device=device)
        self.hide_context = ~sees_context(
            plan.starts[:, :, None, None], plan.anchors[:, :, None, None], slots[:, None], context, window
        ).expand(batch, blocks, size, plan.sequence_length)
        self.hide_slots = ~sees_slot(0, slots[:, None], 0, slots, window) if window is not None else None
        self.alive = _alive_slots(plan)
        self.blocks, self.size = blocks, size

    def __call__(self, query, context_key, context_value, draft_key, draft_value):
        batch, heads, rows, dim = query.shape
        kv_heads = context_key.shape[1]
        # Queries that share a key head are stacked, so keys are never repeated: [B, kv, groups, N, K, D].
        grouped = (query * dim**-0.5).view(batch, kv_heads, heads // kv_heads, self.blocks, self.size, dim)
        own_key = draft_key.view(batch, kv_heads, 1, self.blocks, self.size, dim)
        own_value = draft_value.view(batch, kv_heads, 1, self.blocks, self.size, dim)

        shape = (*grouped.shape[:-1], context_key.shape[2])
        on_context = (grouped.flatten(2, 4) @ context_key.transpose(-1, -2)).view(shape)
        on_context = on_context.masked_fill(self.hide_context[:, None, None], float("-inf"))
        on_slots = grouped @ own_key.transpose(-1, -2)
        if self.hide_slots is not None:
            on_slots = on_slots.masked_fill(self.hide_slots, float("-inf"))
        # Every slot sees itself, so no row is empty; dropped blocks are cleared at the end.
        probs = torch.cat([on_context, on_slots], dim=-1).float().softmax(-1).to(query.dtype)
        to_context, to_slots = probs.split([context_key.shape[2], self.size], dim=-1)
        out = (to_context.flatten(2, 4) @ context_value).view(grouped.shape) + to_slots @ own_value
        return out.view(batch, heads, rows, dim) * self.alive


ATTENTION_FORMS: dict[str, type] = {"dense": DenseAttention, "flex": FlexAttention, "split": SplitAttention}


def default_attention_form(device: torch.device) -> str:
    """`flex` where its compiled kernel exists, `split` elsewhere."""
    return "flex" if device.type == "cuda" else "split"


def _alive_slots(plan: BlockPlan) -> torch.Tensor:
    """[B, 1, N*K, 1] bool: slots of blocks that were kept."""
    return plan.keep.repeat_interleave(plan.block_size, dim=1)[:, None, :, None]


def _flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache
def compiled_flex_attention(compiler: str = "inductor") -> Callable[..., torch.Tensor]:
    """FlexAttention compiled anew for every shape. Behind its limit, 8, torch would fall back to the form that keeps
    all scores, without a word; this one knows no such limit in practice, and with `fullgraph` it is an error.
    """
    kernel = torch.compile(_flex_attention(), dynamic=False, fullgraph=True, backend=compiler)

    def call(*tensors: torch.Tensor, **options) -> torch.Tensor:
        # Read when a shape is new; other code that is compiled keeps its own limits.
        with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES, accumulated_recompile_limit=_MOST_SHAPES):
            return kernel(*tensors, **options)

    return call
