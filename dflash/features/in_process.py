"""Features computed by a target in the trainer's own process, up to the last captured layer and no further."""

from collections.abc import Sequence

import torch

from dflash.data.rows import Row
from dflash.features.assembly import assemble
from dflash.target import TargetModel


class InProcessFeatures:
    """Runs the frozen target over every document by itself, so that packed neighbours never see one another."""

    def __init__(self, target: TargetModel, layer_ids: Sequence[int]) -> None:
        self._target = target
        self._layer_ids = list(layer_ids)

    def __call__(self, rows: Sequence[Row], *, length: int | None = None) -> torch.Tensor:
        """[B, S, n*E] in the target's dtype and on its device; S is the longest row, or `length`."""
        documents = [document for row in rows for document in row.documents]
        # As many padded tokens at once as the rows would have without packing: what the micro-batch was sized for.
        budget = len(rows) * max(map(len, rows))
        return assemble(rows, self.of_documents(documents, budget), length)

    def of_documents(self, documents: Sequence[list[int]], budget: int) -> list[torch.Tensor]:
        """[s, n*E] for each document, in order; a forward holds at most `budget` tokens, or a single document.

        On a CPU every document gets a forward of its own: batching saves nothing there, and bf16 results depend on the
        shape, while what was captured to disk has to equal what is computed here to the last bit.
        """
        features: list[torch.Tensor | None] = [None] * len(documents)
        for group in _groups([len(document) for document in documents], budget, self._target.device):
            padded = torch.zeros(len(group), max(len(documents[i]) for i in group), dtype=torch.int64)
            for row, index in enumerate(group):
                padded[row, : len(documents[index])] = torch.tensor(documents[index])
            # Padding stands on the right of causal attention: no token of a document can see it.
            # Autocast would change what an fp32 target computes, and depends on who calls.
            with torch.autocast(self._target.device.type, enabled=False):
                output = self._target.features(padded.to(self._target.device), self._layer_ids)
            for row, index in enumerate(group):
                features[index] = output[row, : len(documents[index])]
        return features

    def close(self) -> None:
        """Nothing to give back: the target belongs to the caller."""


def _groups(lengths: Sequence[int], budget: int, device: torch.device) -> list[list[int]]:
    """Indices of the documents that share a forward: neighbours in length, so that little of it is padding."""
    if device.type == "cpu":
        return [[index] for index in range(len(lengths))]
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
