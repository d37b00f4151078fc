"""The DFlash draft: a small decoder stack that predicts a whole block in one forward (arXiv 2602.06036).

Shapes: B sequences, S tokens of text, Q draft slots, n target features, E hidden size (shared with the target).
"""

import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from dflash.blocks.attention import BlockAttention
from dflash.errors import UserError
from dflash.model.attention import Angles, DualSourceAttention
from dflash.model.cache import DraftCache
from dflash.model.config import DFlashConfig
from dflash.model.draft_folder import CONFIG_FILE, WEIGHTS_FILE, check_whole, read_draft_config, seal, unseal
from dflash.model.norm import RMSNorm
from dflash.model.rotary import RotaryEmbedding
from dflash.model.vocabulary import VOCABULARY_FILE, load_vocabulary, save_vocabulary
from dflash.target import DTYPES, TargetModel


class SwiGLU(nn.Module):
    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))


class DraftLayer(nn.Module):
    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = DualSourceAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        slots: torch.Tensor,
        context: torch.Tensor,
        slot_angles: Angles,
        context_angles: Angles,
        attend: BlockAttention,
    ) -> torch.Tensor:
        normed = self.input_layernorm(slots)
        return self._finish(slots, self.self_attn(normed, context, slot_angles, context_angles, attend))

    def forward_block(self, slots: torch.Tensor, angles: Angles, keys: torch.Tensor, values: torch.Tensor):
        return self._finish(slots, self.self_attn.forward_block(self.input_layernorm(slots), angles, keys, values))

    def _finish(self, slots: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        slots = slots + attended
        return slots + self.mlp(self.post_attention_layernorm(slots))


class DFlashDraft(nn.Module):
    """The draft without embedding and LM head, which are the target's and stay there."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary: torch.Tensor | None = None  # token ids it proposes from; None: all of the target's
        self.fc = nn.Linear(config.num_features * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def context(self, features: torch.Tensor) -> torch.Tensor:
        """Target features [B, S, n*E] -> context [B, S, E], shared by all layers."""
        return self.hidden_norm(self.fc(features))

    def forward(
        self,
        slot_embeddings: torch.Tensor,
        features: torch.Tensor,
        slot_positions: torch.Tensor,
        attend: BlockAttention,
        context_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Training forward over all blocks of a plan.

        Args:
            slot_embeddings: [B, Q, E], the target's embedding of anchors and mask tokens.
            features: [B, S, n*E] of the whole text.
            slot_positions: [B, Q], anchor + slot, counted from the start of the document.
            attend: built from the same plan.
            context_positions: [B, S], of every token in its document; None: 0 to S-1, one document per row.

        Returns:
            [B, Q, E] final-normed hidden states, ready for the target's LM head.
        """
        context = self.context(features)
        if context_positions is None:
            context_positions = torch.arange(features.shape[1], device=features.device)[None]
        context_angles = self.rotary(context, context_positions)
        slot_angles = self.rotary(context, slot_positions)
        states = slot_embeddings.to(context.dtype)
        for layer in self.layers:
            states = layer(states, context, slot_angles, context_angles, attend)
        return self.norm(states)

    def new_cache(self) -> DraftCache:
        return DraftCache(len(self.layers))

    @torch.inference_mode()
    def extend_context(self, features: torch.Tensor, cache: DraftCache) -> None:
        """Project the features [1, T, n*E] of the next T tokens and append their keys and values."""
        context = self.context(features)
        positions = torch.arange(cache.length, cache.length + features.shape[1], device=features.device)[None]
        angles = self.rotary(context, positions)
        for index, layer in enumerate(self.layers):
            cache.append(index, *layer.self_attn.keys_values(context, angles))

    @torch.inference_mode()
    def forward_block(self, embeddings: torch.Tensor, cache: DraftCache) -> torch.Tensor:
        """One block [1, K, E] whose anchor stands right behind the cached context. Returns [1, K, E], final-normed."""
        positions = torch.arange(cache.length, cache.length + embeddings.shape[1], device=embeddings.device)[None]
        angles = self.rotary(embeddings, positions)
        states = embeddings
        for index, layer in enumerate(self.layers):
            states = layer.forward_block(states, angles, *cache.get(index))
        return self.norm(states)

    def check_target(self, target: TargetModel) -> None:
        """Refuse a target the draft was not made for.

        Raises:
            UserError: hidden size, vocabulary or depth differ.
        """
        self.config.check_target(
            target.name, hidden_size=target.hidden_size, vocab_size=target.vocab_size, depth=target.num_layers
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the public folder form."""
        write_draft_folder(folder, self.config, self.state_dict(), self.vocabulary)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, dtype: str = "bfloat16", device: str | torch.device = "cpu"
    ) -> "DFlashDraft":
        """Load a draft folder.

        Raises:
            UserError: a file is missing or damaged, or its tensors are not exactly those of the config.
        """
        folder = Path(folder)
        if dtype not in DTYPES:
            raise UserError(f"Unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
        config = read_draft_config(folder)
        check_whole(folder)
        draft = cls(config)
        draft._load_weights(folder / WEIGHTS_FILE)
        draft.vocabulary = load_vocabulary(folder, config.vocab_size)
        return draft.to(device=device, dtype=DTYPES[dtype]).eval()

    def _load_weights(self, path: Path) -> None:
        try:
            weights = load_file(path)
        except Exception as error:  # safetensors raises its own type, which is not exported
            raise UserError(f"Draft weights {str(path)!r} could not be read ({error}).") from error
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        if missing or unknown:
            raise UserError(
                f"Draft weights {str(path)!r} do not match their config: missing {missing[:3] or 'none'}, "
                f"unknown {unknown[:3] or 'none'} ({len(missing)} missing, {len(unknown)} unknown)."
            )
        wrong = [n for n, t in weights.items() if t.shape != own[n].shape]
        if wrong:
            name = wrong[0]
            raise UserError(
                f"Draft weights {str(path)!r}: {name} has shape {list(weights[name].shape)}, "
                f"the config asks for {list(own[name].shape)}."
            )
        self.load_state_dict(weights)


def write_draft_folder(
    folder: Path | str, config: DFlashConfig, weights: dict[str, torch.Tensor], vocabulary: torch.Tensor | None = None
) -> None:
    """The public folder form of a draft's weights: config.json and bf16 model.safetensors (both renamed into place).

    Checksums come last; other tools pass them over.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unseal(folder)
    public = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in weights.items()}
    save_file(public, folder / f"{WEIGHTS_FILE}.tmp", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS_FILE}.tmp", folder / WEIGHTS_FILE)
    (folder / f"{CONFIG_FILE}.tmp").write_text(json.dumps(config.to_public(), indent=2) + "\n")
    os.replace(folder / f"{CONFIG_FILE}.tmp", folder / CONFIG_FILE)
    save_vocabulary(folder, vocabulary)
    seal(folder, [CONFIG_FILE, WEIGHTS_FILE] + [VOCABULARY_FILE] * (vocabulary is not None))
