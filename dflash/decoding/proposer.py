"""Where proposals come from: the interface the engine speaks to, and the DFlash draft behind it.

Shapes: K proposed tokens, T accepted tokens, n target features, H hidden size of the target, V vocabulary.
"""

from typing import Protocol

import torch

from dflash.decoding.sampling import Dice, Sampling, draw, most_likely, probabilities
from dflash.decoding.verification import Proposal
from dflash.model.draft import DFlashDraft
from dflash.model.vocabulary import DraftHead
from dflash.target import TargetModel


class Drafting(Protocol):
    """The proposals of one decoding."""

    def extend(self, features: torch.Tensor) -> None:
        """Take in the target's features [1, T, n*H] of the next T tokens of the text."""

    def propose(self, anchor: torch.Tensor, count: int, sampling: Sampling, dice: Dice) -> Proposal:
        """`count` tokens to follow the anchor [1, 1], the newest token, whose own features are not known yet."""


class Proposer(Protocol):
    """Something that can draft for a target again and again."""

    block_size: int
    layer_ids: list[int]  # target layers whose outputs it wants

    def start(self) -> Drafting: ...


class DraftProposer:
    """Proposals by a DFlash draft with the target's embedding, and its LM head over the draft's vocabulary."""

    def __init__(self, target: TargetModel, draft: DFlashDraft) -> None:
        self.target, self.draft = target, draft
        self.block_size = draft.config.block_size
        self.layer_ids = list(draft.config.target_layer_ids)
        with torch.inference_mode():
            self.head = DraftHead(target.lm_head, draft.vocabulary)
            mask = torch.full((1, self.block_size - 1), draft.config.mask_token_id, device=target.device)
            self.mask_embeddings = target.embedding(mask)

    def start(self) -> "DraftDrafting":
        return DraftDrafting(self)


class DraftDrafting:
    """One decoding's context in the draft."""

    def __init__(self, proposer: DraftProposer) -> None:
        self._proposer = proposer
        self._cache = proposer.draft.new_cache()

    def extend(self, features: torch.Tensor) -> None:
        self._proposer.draft.extend_context(features, self._cache)

    def propose(self, anchor: torch.Tensor, count: int, sampling: Sampling, dice: Dice) -> Proposal:
        target, masks, head = self._proposer.target, self._proposer.mask_embeddings, self._proposer.head
        block = torch.cat([target.embedding(anchor), masks[:, :count]], dim=1)
        hidden = self._proposer.draft.forward_block(block, self._cache)
        logits = head(hidden[0, 1:])
        if not sampling.samples_draft:
            return Proposal(head.tokens(most_likely(logits)))
        probs = probabilities(logits, sampling.temperature)
        return Proposal(head.tokens(draw(probs, dice.fresh(count))), head.spread(probs))
