"""The draft as others will load it: whole weights, averaged where the run keeps an average."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft, write_draft_folder
from dflash.training.ema import WeightAverage
from dflash.training.parallel import whole
from dflash.training.world import World


@dataclass(frozen=True)
class DraftExport:
    """A copy in bf16 and host memory, on rank 0; elsewhere `weights` is empty."""

    config: DFlashConfig
    weights: dict[str, torch.Tensor]
    vocabulary: torch.Tensor | None = None

    @classmethod
    def of(cls, draft: DFlashDraft, average: WeightAverage | None, world: World) -> "DraftExport":
        """Every rank has to call it: sharded weights are put together one after the other."""
        source = dict(draft.named_parameters()) if average is None else average.tensors
        weights = {}
        for name, tensor in source.items():
            gathered = whole(tensor.detach())
            if world.is_main:
                weights[name] = gathered.to("cpu", torch.bfloat16, copy=True)
        return cls(draft.config, weights, draft.vocabulary)

    def write(self, folder: Path) -> None:
        """As a public draft folder."""
        write_draft_folder(folder, self.config, self.weights, self.vocabulary)

    def build(self) -> DFlashDraft:
        """As a draft of its own, to decode with."""
        with torch.random.fork_rng(devices=[]):  # building a draft draws initial weights
            draft = DFlashDraft(self.config)
        draft.load_state_dict(self.weights)
        draft.vocabulary = self.vocabulary
        return draft
