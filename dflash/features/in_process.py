"""Features computed by a target in the trainer's own process."""

import torch

from dflash.target import TargetModel


class InProcessFeatures:
    """Runs the frozen target up to the last wanted layer for every text."""

    def __init__(self, target: TargetModel, layer_ids: list[int]) -> None:
        self._target = target
        self._layer_ids = layer_ids

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[1, S] -> [1, S, n*E] in the target's dtype."""
        return self._target.features(input_ids, self._layer_ids)
