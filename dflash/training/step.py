"""The algorithm on one micro-batch: sample anchors, lay out blocks, draft, weighted loss, statistics (2602.06036).

Shapes: B rows, S tokens, N anchor slots, K slots per block, n target features, E hidden size.
"""

from collections.abc import Sequence

import torch

from dflash.blocks.attention import ATTENTION_FORMS, default_attention_form
from dflash.blocks.plan import BlockPlan, plan_blocks
from dflash.config import TrainConfig
from dflash.features.micro_batch import MicroBatch
from dflash.model.draft import DFlashDraft
from dflash.objectives.candidates import CandidateSampler
from dflash.objectives.cross_entropy import BlockStatistics, decayed_cross_entropy
from dflash.target import TargetModel
from dflash.training.world import World

TILE = 128  # rows and columns of FlexAttention's tiles


class DraftStep:
    """Call it with a micro-batch and one generator per row; it returns the weighted loss sum and its statistics."""

    def __init__(
        self,
        draft: DFlashDraft,
        target: TargetModel,
        config: TrainConfig,
        device: torch.device,
        candidates: CandidateSampler | None = None,
    ) -> None:
        """`candidates`: estimate the softmax of training from some of the vocabulary."""
        self._draft, self._target, self._config, self._device = draft, target, config, device
        form = config.blocks.attention
        self._attention_form = ATTENTION_FORMS[default_attention_form(device) if form == "auto" else form]
        self._candidates = candidates

    def __call__(
        self,
        micro: MicroBatch,
        generators: Sequence[torch.Generator],
        drawing: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, BlockStatistics]:
        """`drawing` draws the candidates of this micro-batch, one set for all its rows; `generators` their anchors."""
        micro.wait()
        plan = self._plan(micro, generators)
        hidden = self._draft_hidden(micro, plan)
        # Validation judges by the whole vocabulary.
        estimated = self._candidates is not None and hidden.requires_grad
        candidates = self._candidates.draw(drawing) if estimated else None
        return decayed_cross_entropy(hidden, self._target.lm_head.weight, plan, candidates)

    def _plan(self, micro: MicroBatch, generators: Sequence[torch.Generator]) -> BlockPlan:
        batch, slots = micro.batch, self._config.blocks.num_anchors
        if self._device.type == "cpu":
            # Compiled kernels want few shapes; on a CPU empty slots would only cost time.
            slots = min(slots, max(row.supervised for row in micro.rows))
        return plan_blocks(
            batch.input_ids,
            batch.loss_mask,
            block_size=self._draft.config.block_size,
            num_anchors=slots,
            gamma=self._config.gamma_at(self._draft.config.block_size),
            generator=list(generators),
            document_start=batch.document_start,
        )

    def _draft_hidden(self, micro: MicroBatch, plan: BlockPlan) -> torch.Tensor:
        """[B, N*K, E], final-normed."""
        config, autocast = self._draft.config, self._config.run.autocast
        with torch.no_grad():
            embeddings = self._target.embedding(plan.slot_inputs(micro.batch.input_ids, config.mask_token_id))
        features = micro.features.detach()
        attend = self._attention_form(plan, config.sliding_window)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=autocast):
            if not autocast:
                features, embeddings = features.float(), embeddings.float()
            return self._draft(embeddings, features, plan.slot_positions, attend, micro.batch.positions)


def pool_over_ranks(
    statistics: BlockStatistics, counts: Sequence[float], world: World
) -> tuple[BlockStatistics, list[float]]:
    """Statistics and a few counts, summed over all ranks in one message."""
    parts = statistics.tensors()
    device = parts[0].device
    extra = torch.tensor(counts, dtype=torch.float64, device=device)
    flat = world.sum(torch.cat([*(part.flatten().double() for part in parts), extra]))
    *pooled, extra = flat.split([part.numel() for part in parts] + [len(extra)])
    tensors = (values.view(part.shape).to(part.dtype) for values, part in zip(pooled, parts, strict=True))
    return BlockStatistics(*tensors), extra.tolist()
