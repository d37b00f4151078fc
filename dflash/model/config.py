"""The draft's configuration and its public `config.json` form, which serving engines read."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dflash.errors import UserError
from dflash.layer_ids import default_layer_ids

if TYPE_CHECKING:
    from dflash.target import TargetModel

ARCHITECTURE = "DFlashDraftModel"


@dataclass
class DFlashConfig:
    """Shape and conventions of a draft. `hidden_size` and `vocab_size` are the target's, whose embedding it shares."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    block_size: int
    mask_token_id: int
    target_layer_ids: list[int]  # 0-based decoder layers whose outputs are the features
    num_target_layers: int  # depth of the target
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    sliding_window: int | None = None  # None: full attention in every layer
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    target_name: str = ""  # for messages only

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise UserError(f"block_size {self.block_size} leaves nothing to draft: it must be at least 2.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}."
            )
        bad = [i for i in self.target_layer_ids if not 0 <= i < self.num_target_layers]
        if bad or not self.target_layer_ids or len(set(self.target_layer_ids)) < len(self.target_layer_ids):
            raise UserError(
                f"target_layer_ids {self.target_layer_ids} must be distinct layers between 0 and "
                f"{self.num_target_layers - 1}, at least one."
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise UserError(f"mask_token_id {self.mask_token_id} is no row of an embedding of {self.vocab_size} rows.")

    @property
    def num_features(self) -> int:
        return len(self.target_layer_ids)

    def check_target(self, name: str, *, hidden_size: int, vocab_size: int, depth: int) -> None:
        """Refuse a target of these sizes that the draft was not made for; `name` is for the sentence.

        Raises:
            UserError: hidden size, vocabulary or depth differ.
        """
        expected = {
            "hidden size": (self.hidden_size, hidden_size),
            "vocabulary": (self.vocab_size, vocab_size),
            "number of layers": (self.num_target_layers, depth),
        }
        wrong = [f"{what} {mine} instead of {theirs}" for what, (mine, theirs) in expected.items() if mine != theirs]
        if wrong:
            made_for = f" ({self.target_name})" if self.target_name else ""
            raise UserError(
                f"The draft was made for another target{made_for} than {name!r}: it expects {', '.join(wrong)}. Choose "
                "the draft trained for this target."
            )

    @classmethod
    def for_target(
        cls,
        target: "TargetModel",
        *,
        num_hidden_layers: int = 5,
        num_features: int = 5,
        block_size: int = 16,
        target_layer_ids: list[int] | None = None,
        mask_token_id: int | None = None,
        sliding_window: int | None = None,
        intermediate_size: int | None = None,
    ) -> "DFlashConfig":
        """A draft shaped like one of the target's layers; everything not given is read from the target.

        Raises:
            UserError: the target has no rotary positions, too few layers for its features, or no spare mask token.
        """
        source = target.config
        rope = _full_attention_rope(target)
        heads = source.num_attention_heads
        return cls(
            hidden_size=source.hidden_size,
            intermediate_size=intermediate_size or _mlp_width(target),
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=getattr(source, "num_key_value_heads", None) or heads,
            head_dim=getattr(source, "head_dim", None) or source.hidden_size // heads,
            vocab_size=target.vocab_size,
            block_size=block_size,
            mask_token_id=choose_mask_token(target) if mask_token_id is None else mask_token_id,
            target_layer_ids=target_layer_ids or default_layer_ids(target.num_layers, num_features),
            num_target_layers=target.num_layers,
            rope_parameters=rope,
            max_position_embeddings=source.max_position_embeddings,
            rms_norm_eps=getattr(source, "rms_norm_eps", 1e-6),
            sliding_window=sliding_window,
            bos_token_id=getattr(source, "bos_token_id", None),
            eos_token_id=getattr(source, "eos_token_id", None),
            target_name=target.name,
        )

    def to_public(self) -> dict[str, Any]:
        """The `config.json` that z-lab's code, SGLang and vLLM load."""
        rope = dict(self.rope_parameters)
        kind = "full_attention" if self.sliding_window is None else "sliding_attention"
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen3",
            "dtype": "bfloat16",
            "block_size": self.block_size,
            "dflash_config": {"mask_token_id": self.mask_token_id, "target_layer_ids": self.target_layer_ids},
            "num_target_layers": self.num_target_layers,
            "num_hidden_layers": self.num_hidden_layers,
            "layer_types": [kind] * self.num_hidden_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "head_dim": self.head_dim,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            # Old and new schema: engines differ in which one they read.
            "rope_theta": rope.get("rope_theta"),
            "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
            "rope_parameters": rope,
            **{key: rope[key] for key in ("partial_rotary_factor",) if key in rope},
            "max_position_embeddings": self.max_position_embeddings,
            "max_window_layers": self.num_hidden_layers,
            "sliding_window": self.sliding_window,
            "use_sliding_window": self.sliding_window is not None,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": False,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "target_name": self.target_name,
        }

    @classmethod
    def from_public(cls, public: dict[str, Any]) -> "DFlashConfig":
        """Read a public `config.json`.

        Raises:
            UserError: a field is missing or describes something that is not a plain DFlash draft.
        """
        if ARCHITECTURE not in public.get("architectures", []):
            raise UserError(f"config.json names architectures {public.get('architectures')}, not {ARCHITECTURE!r}.")
        dflash = public.get("dflash_config") or {}
        if dflash.get("projector_type") not in (None, "dflash"):
            asked = dflash["projector_type"]
            raise UserError(f"config.json asks for projector_type {asked!r}; supported: plain DFlash.")
        if public.get("hidden_act", "silu") != "silu":
            raise UserError(f"config.json asks for hidden_act {public['hidden_act']!r}; supported: 'silu'.")
        kinds = set(public.get("layer_types") or ["full_attention"])
        if len(kinds) > 1:
            raise UserError(f"config.json mixes layer_types {sorted(kinds)}; supported: the same type in every layer.")
        try:
            return cls(
                hidden_size=public["hidden_size"],
                intermediate_size=public["intermediate_size"],
                num_hidden_layers=public["num_hidden_layers"],
                num_attention_heads=public["num_attention_heads"],
                num_key_value_heads=public["num_key_value_heads"],
                head_dim=public["head_dim"],
                vocab_size=public["vocab_size"],
                block_size=public["block_size"],
                mask_token_id=dflash["mask_token_id"],
                target_layer_ids=list(dflash["target_layer_ids"]),
                num_target_layers=public["num_target_layers"],
                rope_parameters=_read_rope(public),
                max_position_embeddings=public.get("max_position_embeddings", 32768),
                rms_norm_eps=public.get("rms_norm_eps", 1e-6),
                attention_bias=public.get("attention_bias", False),
                sliding_window=public.get("sliding_window") if kinds == {"sliding_attention"} else None,
                initializer_range=public.get("initializer_range", 0.02),
                bos_token_id=public.get("bos_token_id"),
                eos_token_id=public.get("eos_token_id"),
                target_name=public.get("target_name", ""),
            )
        except KeyError as error:
            raise UserError(f"config.json of the draft lacks {error.args[0]!r}.") from error


def choose_mask_token(target: "TargetModel") -> int:
    """An embedding row that text never produces.

    The first row behind the tokenizer's vocabulary if there is one (Qwen3: 151669), else the last special token that
    neither ends a text nor occurs in the chat template.

    Raises:
        UserError: the vocabulary has no such row; the user has to name one.
    """
    tokenizer = target.tokenizer
    if target.embedding.weight.shape[0] > len(tokenizer):
        return len(tokenizer)
    template = tokenizer.chat_template or ""
    taken = target.eos_token_ids | {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    for token_id, token in sorted(tokenizer.added_tokens_decoder.items(), reverse=True):
        if token.special and token_id not in taken and token.content not in template:
            return token_id
    raise UserError(f"No spare special token in the vocabulary of {target.name!r}: set mask_token_id yourself.")


def _read_rope(public: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters of a config.json in the new schema (one dictionary) or the old one (three fields)."""
    rope = {"rope_type": "default", **(public.get("rope_parameters") or public.get("rope_scaling") or {})}
    if "type" in rope:  # the oldest spelling
        rope["rope_type"] = rope.pop("type")
    rope.setdefault("rope_theta", public.get("rope_theta"))
    if rope["rope_theta"] is None:
        raise KeyError("rope_theta")
    if "partial_rotary_factor" in public:
        rope.setdefault("partial_rotary_factor", public["partial_rotary_factor"])
    return rope


def _mlp_width(target: "TargetModel") -> int:
    width = getattr(target.config, "intermediate_size", None)
    if width is None:
        raise UserError(f"Target {target.name!r} has no intermediate_size: set the draft's yourself.")
    return width


def _full_attention_rope(target: "TargetModel") -> dict[str, Any]:
    rope = getattr(target.config, "rope_parameters", None)
    if not rope:
        raise UserError(
            f"Target {target.name!r} ({target.config.model_type}) has no rotary positions (rope_parameters), which a "
            "draft takes from its target: choose another target."
        )
    # Targets with several kinds of attention keep one set of rotary parameters per kind.
    return dict(rope.get("full_attention", rope))
