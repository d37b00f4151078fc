"""The typed configuration of a training run: the one source of every setting for YAML, CLI and workbench.

Importing this module must stay cheap (no torch): bad configurations are refused before anything heavy is loaded.
"""

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dflash.errors import UserError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class TargetConfig(_Section):
    name: str = Field("smollm2-135m", min_length=1, description="embedded name, Hugging Face id or folder")
    dtype: Literal["bfloat16", "float32", "float16"] = Field("bfloat16", description="dtype of the frozen target")


class DraftConfig(_Section):
    num_hidden_layers: int = Field(5, ge=1, description="decoder layers of the draft")
    num_features: int = Field(5, ge=1, description="target layers whose outputs are the context")
    target_layer_ids: list[int] | None = Field(None, min_length=1, description="0-based layers; default: spread evenly")
    block_size: int = Field(16, ge=2, le=128, description="slots per block, the anchor included")
    mask_token_id: int | None = Field(None, ge=0, description="embedding row of the mask token; default: a spare one")
    intermediate_size: int | None = Field(None, ge=1, description="MLP width; default: the target's")
    sliding_window: int | None = Field(None, ge=2, description="tokens; default: full attention")
    init: str = Field("random", description="'random', 'warm' (from the target's top layers) or a draft folder")

    @model_validator(mode="after")
    def _layer_ids_agree(self):
        ids = self.target_layer_ids
        if ids is None:
            return self
        if "num_features" not in self.model_fields_set:
            self.num_features = len(ids)
        if self.num_features != len(ids):
            raise ValueError(f"num_features {self.num_features} contradicts {len(ids)} target_layer_ids: drop one of them")
        return self


class DataConfig(_Section):
    train: list[str] = Field(min_length=1, description="conversation files (JSONL)")
    validation_size: int = Field(64, ge=1, description="conversations held out, drawn by seed")
    max_length: int = Field(512, ge=8, description="tokens; longer conversations are truncated")
    min_supervised: int = Field(2, ge=2, description="supervised tokens below which a conversation is left out")


class BlocksConfig(_Section):
    num_anchors: int = Field(512, ge=1, description="anchor slots per conversation")
    gamma: float | None = Field(None, gt=0, description="decay of the slot weights; default: by block size")
    attention: Literal["auto", "dense", "flex", "split"] = Field("auto", description="form of the masked attention")


class OptimizerConfig(_Section):
    name: Literal["adamw", "muon"] = Field("adamw", description="muon: matrices by Muon, the rest by AdamW")
    lr: float = Field(6e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(6e-5, ge=0, description="learning rate at the end of the schedule")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, none on norms")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")

    @model_validator(mode="after")
    def _rates_are_ordered(self):
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}: lower it")
        return self


class ScheduleConfig(_Section):
    kind: Literal["wsd", "cosine", "linear", "constant"] = Field("wsd", description="shape after warm-up")
    warmup_ratio: float = Field(0.04, ge=0, lt=1, description="share of all steps")
    decay_ratio: float = Field(0.2, ge=0, le=1, description="share of all steps, wsd only")
    decay_style: Literal["linear", "cosine", "sqrt"] = Field("cosine", description="wsd only")

    @model_validator(mode="after")
    def _phases_fit(self):
        if self.kind == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio} + decay_ratio {self.decay_ratio} exceed 1: shorten one of them"
            )
        return self


class RunConfig(_Section):
    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(8, ge=1, description="conversations per optimizer step")
    seed: int = Field(0, ge=0)
    device: str = Field("cpu", description="torch device of target and draft")
    autocast: bool = Field(True, description="bf16 matrix products over fp32 master weights")
    log_every: int = Field(10, ge=1, description="steps")
    validate_every: int = Field(100, ge=1, description="steps")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    keep_checkpoints: int = Field(2, ge=1, description="newest ones kept besides the best")


class TrainConfig(_Section):
    """Everything a run needs. See configs/ for worked examples."""

    target: TargetConfig = TargetConfig()
    draft: DraftConfig = DraftConfig()
    data: DataConfig
    blocks: BlocksConfig = BlocksConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    run: RunConfig = RunConfig()

    @property
    def gamma(self) -> float:
        """Decay of the slot weights: as set, else the paper's values (4, 5, 7 at 8, 10, 16), linear between."""
        if self.blocks.gamma is not None:
            return self.blocks.gamma
        size = self.draft.block_size
        return max(1.0, 4 + (size - 8) * 0.5 if size <= 10 else 5 + (size - 10) / 3)


def load_config(path: Path | str, overrides: list[str] = ()) -> TrainConfig:
    """Read a YAML file, apply `section.key=value` overrides and validate.

    Raises:
        UserError: every complaint in one message, each naming field, value and remedy.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Config {str(path)!r} could not be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Config {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"Config {str(path)!r} must hold sections such as `target:` and `data:`.")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], origin: str) -> TrainConfig:
    """Validate a plain tree; `origin` names it in complaints."""
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"Config {origin}: " + " ".join(_complaint(item) for item in error.errors())) from error


def dump_config(config: TrainConfig) -> str:
    """The resolved configuration as YAML; loading it gives an equal one."""
    return yaml.safe_dump(config.model_dump(exclude_none=True, exclude_unset=False), sort_keys=False)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)+", key):
        raise UserError(f"Override {override!r} is not of the form section.key=value.")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"Override {override!r}: {parent!r} is a value, not a section.")
    try:
        node[leaf] = _number(yaml.safe_load(raw))
    except yaml.YAMLError as error:
        raise UserError(f"Override {override!r}: the value is not valid YAML.") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads 6e-4 as text; people who type it mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _complaint(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        return f"{where} is no known setting: check its spelling or remove it."
    if item["type"] == "missing":
        return f"{where} is missing: set it."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where}: {message}."
    return f"{where} = {item['input']!r}: {message[0].lower()}{message[1:]}."
