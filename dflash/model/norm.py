"""RMSNorm that stays in its input's dtype, so that mixed precision keeps the fused kernel."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.RMSNorm):
    """Weights may be float32 masters while activations are bf16."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        # CUDA's autocast returns float32 here whatever goes in, hence the last cast.
        return F.rms_norm(states, self.normalized_shape, self.weight.to(states.dtype), self.eps).to(states.dtype)
