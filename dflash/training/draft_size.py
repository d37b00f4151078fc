"""Shape and number of weights of the draft that a config asks for, without building it."""

import json
from dataclasses import dataclass
from pathlib import Path

from dflash.config import TrainConfig
from dflash.target_facts import TargetFacts

FROM_SCRATCH = ("random", "warm")  # values of draft.init that are no draft folder


@dataclass(frozen=True)
class DraftShape:
    """The sizes that decide about a draft's weights and activations."""

    hidden_size: int
    intermediate_size: int
    layers: int
    features: int
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int

    @property
    def matrices(self) -> int:
        """Weights in matrices: `fc` [H, n*H], and per layer q, k, v, o and the three of the MLP."""
        attention = 2 * self.hidden_size * (self.heads + self.kv_heads) * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.features * self.hidden_size**2 + self.layers * (attention + mlp)

    @property
    def norms(self) -> int:
        """Weights of `hidden_norm`, `norm`, and per layer two norms and those of query and key heads."""
        return 2 * self.hidden_size + self.layers * 2 * (self.hidden_size + self.head_dim)

    @property
    def parameters(self) -> int:
        """All trained weights: embedding and LM head are the target's and not among them."""
        return self.matrices + self.norms


def draft_shape(config: TrainConfig, facts: TargetFacts | None) -> DraftShape | None:
    """The draft's shape: of the folder that draft.init names, else as configured and like the target's layers.

    None where the folder cannot be read, the target is unknown, or neither it nor the config says how wide the MLP is.
    """
    draft = config.draft
    if draft.init not in FROM_SCRATCH:
        return read_draft_shape(draft.init)
    width = draft.intermediate_size or (facts and facts.intermediate_size)
    if facts is None or width is None:
        return None
    return DraftShape(
        hidden_size=facts.hidden_size,
        intermediate_size=width,
        layers=draft.num_hidden_layers,
        features=draft.num_features,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        block_size=draft.block_size,
    )


def read_draft_shape(folder: str) -> DraftShape | None:
    """The shape of a draft folder, None where its config.json is missing or not that of a draft."""
    try:
        tree = json.loads((Path(folder).expanduser() / "config.json").read_text(encoding="utf-8"))
        return DraftShape(
            hidden_size=tree["hidden_size"],
            intermediate_size=tree["intermediate_size"],
            layers=tree["num_hidden_layers"],
            features=len(tree["dflash_config"]["target_layer_ids"]),
            heads=tree["num_attention_heads"],
            kv_heads=tree["num_key_value_heads"],
            head_dim=tree["head_dim"],
            block_size=tree["block_size"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # said in words by the check of draft.init
