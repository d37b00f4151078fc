"""Warm start: a draft that begins as the target's own top layers instead of noise.

Each draft layer takes the weights of one of the target's last layers, `fc` passes the last feature through, and the
per-head query and key norms, which most targets lack, are set to the RMS those heads have in the target. In a trial
with a 135M target this halved the steps to the same loss.
"""

from contextlib import ExitStack

import torch

from dflash.errors import UserError
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

_MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


@torch.no_grad()
def warm_start(draft: DFlashDraft, target: TargetModel, sample_ids: list[int]) -> None:
    """Initialise `draft` in place; `sample_ids` is a typical text, used to measure query and key sizes.

    Raises:
        UserError: the target's layers are of another shape or kind than the draft's.
    """
    count = len(draft.layers)
    if count > target.num_layers:
        raise UserError(f"Warm start: the draft has {count} layers, the target only {target.num_layers}.")
    sources = target.layers[-count:]
    for index, (own, source) in enumerate(zip(draft.layers, sources, strict=True)):
        for name in _MATRICES:
            _copy(own, source, name, f"layer {index}")
    _pass_last_feature(draft)
    # The context skips input_layernorm, so its scale goes into the shared norm.
    scales = torch.stack([layer.input_layernorm.weight for layer in draft.layers])
    draft.hidden_norm.weight.copy_(scales.mean(0))
    draft.norm.weight.copy_(target.final_norm.weight)
    _calibrate_head_norms(draft, target, list(sources), sample_ids)


def _copy(own: torch.nn.Module, source: torch.nn.Module, name: str, where: str) -> None:
    try:
        theirs = source.get_submodule(name).weight
    except AttributeError as error:
        raise UserError(f"Warm start: the target's layers have no {name}; use draft.init=random.") from error
    mine = own.get_submodule(name).weight
    if mine.shape != theirs.shape:
        raise UserError(
            f"Warm start: {name} of draft {where} is {list(mine.shape)}, the target's is {list(theirs.shape)}; "
            "keep the target's shape or use draft.init=random."
        )
    mine.copy_(theirs)


def _pass_last_feature(draft: DFlashDraft) -> None:
    hidden = draft.config.hidden_size
    weight = draft.fc.weight
    weight.mul_(0.1)  # the other features start small, not silent
    weight[:, -hidden:] += torch.eye(hidden, device=weight.device, dtype=weight.dtype)


def _calibrate_head_norms(
    draft: DFlashDraft, target: TargetModel, sources: list[torch.nn.Module], sample_ids: list[int]
) -> None:
    """q_norm/k_norm: copied where the target has them, else filled with the RMS of its heads on the sample."""
    sizes: dict[tuple[int, str], float] = {}

    def measure(key):
        def hook(_module, _args, output):
            sizes[key] = output.float().pow(2).mean().sqrt().item()

        return hook

    with ExitStack() as stack:
        for index, source in enumerate(sources):
            for kind in ("q", "k"):
                module = source.get_submodule(f"self_attn.{kind}_proj")
                stack.callback(module.register_forward_hook(measure((index, kind))).remove)
        target.forward(torch.tensor([sample_ids], device=target.device), keep_logits=1)
    for index, (own, source) in enumerate(zip(draft.layers, sources, strict=True)):
        for kind in ("q", "k"):
            norm = getattr(own.self_attn, f"{kind}_norm")
            theirs = getattr(source.self_attn, f"{kind}_norm", None)
            if theirs is not None and theirs.weight.shape == norm.weight.shape:
                norm.weight.copy_(theirs.weight)
            else:
                norm.weight.fill_(sizes[index, kind])
