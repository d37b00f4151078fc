"""The typed configuration of a training run: the one source of every setting for YAML, CLI and workbench.

Importing this module must stay cheap (no torch): bad configurations are refused before anything heavy is loaded.
"""

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from dflash.complaints import Complaint, from_pydantic, together
from dflash.config_checks import contradictions
from dflash.config_effects import idle_defaults, without_effect
from dflash.config_online import OnlineConfig
from dflash.config_section import Section, UserPath
from dflash.errors import UserError


class TargetConfig(Section):
    name: str = Field("smollm2-135m", min_length=1, description="embedded name, Hugging Face id or folder")
    revision: str | None = Field(None, description="branch, tag or commit of a hub target; default: the newest")
    dtype: Literal["bfloat16", "float32", "float16"] = Field("bfloat16", description="dtype of the frozen target")


class DraftConfig(Section):
    type: str = Field("dflash", description="kind of draft")
    num_hidden_layers: int = Field(5, ge=1, description="decoder layers of the draft")
    num_features: int = Field(5, ge=1, description="target layers whose outputs are the context")
    target_layer_ids: list[int] | None = Field(None, min_length=1, description="0-based layers; default: spread evenly")
    block_size: int = Field(16, ge=2, le=128, description="slots per block, the anchor included")
    mask_token_id: int | None = Field(None, ge=0, description="embedding row of the mask token; default: a spare one")
    intermediate_size: int | None = Field(None, ge=1, description="MLP width; default: the target's")
    sliding_window: int | None = Field(None, ge=2, description="tokens; default: full attention")
    vocabulary_size: int | None = Field(
        None, ge=1, description="most frequent tokens of the data that decoding proposes from; default: all"
    )
    init: UserPath = Field("random", description="'random', 'warm' (from the target's top layers) or a draft folder")

    @model_validator(mode="after")
    def _layer_ids_agree(self):
        ids = self.target_layer_ids
        if ids is None:
            return self
        if "num_features" not in self.model_fields_set:
            self.num_features = len(ids)
        if self.num_features != len(ids):
            raise ValueError(
                f"draft.num_features = {self.num_features} contradicts the {len(ids)} ids of draft.target_layer_ids = "
                f"{ids}: drop one of the two settings"
            )
        return self


class DataConfig(Section):
    train: list[UserPath] = Field(
        min_length=1, description="conversations: JSONL files, data folders or Hugging Face ids"
    )
    subset: str | None = Field(None, description="configuration of a data set that has several")
    split: str = Field("train", min_length=1, description="of a data set; files have none")
    streaming: bool = Field(
        False, description="fetch only the first data.limit rows of a data set, instead of downloading it whole"
    )
    limit: int | None = Field(None, ge=1, description="conversations taken from each source; default: all")
    validation_size: int = Field(64, ge=1, description="conversations held out, drawn by seed")
    max_length: int = Field(512, ge=8, description="tokens of a row; longer conversations are truncated")
    min_supervised: int = Field(2, ge=2, description="supervised tokens below which a conversation is left out")
    thinking: Literal["keep", "drop"] = Field("keep", description="thinking blocks of the answers")
    last_turn_only: bool = Field(False, description="supervise the last answer of a conversation only")
    packing: bool = Field(False, description="several conversations in a row of max_length, none seeing another")
    length_grouping: bool = Field(False, description="rows of one step have similar lengths")


class FeaturesConfig(Section):
    source: Literal["in_process", "cache", "online"] = Field(
        "in_process", description="where target features come from"
    )
    cache: UserPath | None = Field(None, description="folder written by `dflash capture`; source: cache only")
    prefetch: int | None = Field(
        None, ge=0, description="micro-batches prepared ahead; default: 0 for in_process on a CPU, else 2"
    )


class BlocksConfig(Section):
    num_anchors: int = Field(512, ge=1, description="anchor slots per row; at most data.max_length")
    gamma: float | None = Field(None, gt=0, description="decay of the slot weights; default: by block size")
    attention: Literal["auto", "dense", "flex", "split"] = Field("auto", description="form of the masked attention")


class ObjectiveConfig(Section):
    name: Literal["cross_entropy"] = Field("cross_entropy", description="loss of a slot, decayed along the block")
    candidates: int | None = Field(
        None, ge=16, description="tokens from which the training softmax is estimated; default: the whole vocabulary"
    )


class OptimizerConfig(Section):
    name: Literal["adamw", "muon"] = Field("adamw", description="muon: matrices by Muon, the rest by AdamW")
    lr: float = Field(6e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(6e-5, ge=0, description="learning rate at the end of the schedule")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, none on norms")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="average the weights, e.g. 0.999; default: off")


class ScheduleConfig(Section):
    kind: Literal["wsd", "cosine", "linear", "constant"] = Field("wsd", description="shape after warm-up")
    warmup_ratio: float = Field(0.04, ge=0, lt=1, description="rise of the lr (warm-up), share of all steps")
    decay_ratio: float = Field(0.2, ge=0, le=1, description="fall of the lr to min_lr, share of all steps, wsd only")
    decay_style: Literal["linear", "cosine", "sqrt"] = Field("cosine", description="wsd only")

    @model_validator(mode="after")
    def _phases_fit(self):
        if self.kind == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"schedule.warmup_ratio = {self.warmup_ratio} and schedule.decay_ratio = {self.decay_ratio} together "
                "exceed 1: shorten one of them"
            )
        return self


class ParallelConfig(Section):
    """How the ranks that `torchrun` starts share the work; one process needs none of it."""

    strategy: Literal["replicate", "full_shard", "hybrid"] = Field(
        "full_shard", description="replicate: whole draft on each rank; hybrid: shards inside groups, copies across"
    )
    shard_size: int | None = Field(None, ge=2, description="ranks that share one copy; hybrid only")
    reduce_dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype in which gradients are summed")
    cpu_offload: bool = Field(False, description="keep master weights and optimizer state in host memory")
    activation_checkpointing: bool = Field(False, description="recompute layers in the backward pass to save memory")
    compile: bool = Field(False, description="torch.compile the draft's layers")


class CheckpointConfig(Section):
    every: int = Field(100, ge=1, description="steps")
    keep: int = Field(2, ge=1, description="newest ones kept besides the best")
    asynchronous: bool = Field(False, description="write while training goes on")


class MetricsConfig(Section):
    log_every: int = Field(10, ge=1, description="steps")
    validate_every: int = Field(100, ge=1, description="steps")
    decode_every: int | None = Field(None, ge=1, description="steps between decoded-tau measurements; default: never")
    decode_prompts: UserPath | None = Field(
        None, description="prompt file for decoded tau; default: held-out conversations"
    )
    decode_count: int = Field(4, ge=1, description="prompts decoded each time")
    decode_tokens: int = Field(64, ge=1, description="new tokens per decoded prompt")
    decode_seconds: float = Field(60.0, gt=0, description="longest time a measurement may take")
    adapters: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="also send metrics there; keys come from the environment"
    )
    project: str = Field("dflash", min_length=1, description="project name for wandb and trackio")


class RunConfig(Section):
    max_steps: int | None = Field(None, ge=1, le=10**9, description="optimizer steps; default: by epochs")
    epochs: float | None = Field(None, gt=0, le=1e6, description="passes over the training data; instead of max_steps")
    batch_size: int = Field(8, ge=1, description="rows per optimizer step, over all ranks and micro-batches")
    micro_batch_size: int = Field(1, ge=1, description="rows per forward and backward on one rank")
    seed: int = Field(0, ge=0)
    device: str = Field("cpu", description="torch device of target and draft, or 'auto'")
    autocast: bool = Field(True, description="bf16 matrix products over fp32 master weights")

    @model_validator(mode="after")
    def _one_length(self):
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError(
                f"run.max_steps = {self.max_steps} and run.epochs = {self.epochs} contradict each other: set one of "
                "them to null"
            )
        if self.max_steps is None and self.epochs is None:
            self.max_steps = 1000
        return self


class TrainConfig(Section):
    """Everything a run needs. See configs/ for worked examples."""

    target: TargetConfig = TargetConfig()
    draft: DraftConfig = DraftConfig()
    data: DataConfig
    features: FeaturesConfig = FeaturesConfig()
    online: OnlineConfig = OnlineConfig()
    blocks: BlocksConfig = BlocksConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _anchors_fit_short_rows(self):
        if "num_anchors" not in self.blocks.model_fields_set:
            self.blocks.num_anchors = min(self.blocks.num_anchors, self.data.max_length)
        return self

    @model_validator(mode="after")
    def _answers_are_worth_their_capture(self):
        if self.features.source == "online" and "min_supervised" not in self.data.model_fields_set:
            self.data.min_supervised = max(self.data.min_supervised, self.draft.block_size)
        return self

    @property
    def gamma(self) -> float:
        """Decay of the slot weights: as set, else the paper's values (4, 5, 7 at 8, 10, 16), linear between."""
        return self.gamma_at(self.draft.block_size)

    def gamma_at(self, size: int) -> float:
        """The same for blocks of `size` slots: a draft that is continued brings its own."""
        return default_gamma(size) if self.blocks.gamma is None else self.blocks.gamma


def default_gamma(size: int) -> float:
    """Decay for blocks of `size` slots where none is set: the paper's 4, 5, 7 at 8, 10, 16, linear between them."""
    return max(1.0, 4 + (size - 8) * 0.5 if size <= 10 else 5 + (size - 10) / 3)


Check = Callable[[TrainConfig], list[Complaint]]


def load_config(path: Path | str, overrides: Sequence[str] = (), *, also: Check | None = None) -> TrainConfig:
    """Read a YAML file, apply `section.key=value` overrides and validate.

    `also` adds checks that need more than the config (the target, the machine), so that all complaints come at once.

    Raises:
        UserError: every complaint in one message, each a sentence naming field, value and remedy.
    """
    return parse_config(read_tree(path, overrides), repr(str(path)), also=also)


def parse_config(tree: dict[str, Any], origin: str, *, also: Check | None = None) -> TrainConfig:
    """Validate a plain tree; `origin` names it in complaints. See `load_config`."""
    config, complaints = judge(tree, also=also)
    if complaints:
        raise UserError(together(origin, complaints))
    return config


def judge(tree: dict[str, Any], *, also: Check | None = None) -> tuple[TrainConfig, list[Complaint]]:
    """The config, in which every faulty setting has its default, and every complaint about it."""
    config, complaints = _examine(tree)
    faulty = [field for complaint in complaints for field in complaint.fields]
    for found in (*contradictions(config), *without_effect(config), *(also(config) if also else ())):
        if not found.touches(faulty):  # what hangs on a faulty setting was judged with its default: no verdict
            complaints.append(found)
    return config, complaints


def dump_config(config: TrainConfig) -> str:
    """The resolved configuration as YAML; loading it gives an equal one.

    Settings without effect stay out while they have their default: spelled out, they would be refused on loading.
    """
    tree = config.model_dump(exclude_none=True)
    for setting in idle_defaults(config):
        section, _, key = setting.partition(".")
        tree[section].pop(key, None)
    return yaml.safe_dump({name: section for name, section in tree.items() if section}, sort_keys=False)


def read_tree(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file with `section.key=value` overrides applied, not validated yet.

    Raises:
        UserError: the file cannot be read, is no YAML tree or names a setting twice; an override is malformed.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"Config {str(path)!r} could not be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Config {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"Config {str(path)!r} must hold sections such as `target:` and `data:`.")
    for override in overrides:
        _apply_override(tree, override)
    return tree


class _StrictLoader(yaml.SafeLoader):
    """YAML lets a key occur twice and keeps the last one: the first would be an option silently ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is set twice, remove one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)+", key):
        raise UserError(f"Override {override!r} is not of the form section.key=value: write it like run.seed=1.")
    if not raw.strip():
        raise UserError(f"Override {override!r} has no value: write {key}=null for the default.")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"Override {override!r}: {parent!r} is a value, not a section, so give its own name only.")
    try:
        value = _number(yaml.safe_load(raw))
    except yaml.YAMLError as error:
        raise UserError(f"Override {override!r}: the value is not valid YAML, so quote it.") from error
    if value is None:
        node.pop(leaf, None)  # null is "as if it had never been set": every default has a name this way
    else:
        node[leaf] = value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 6e-4 as text; people who type it mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _examine(tree: dict[str, Any]) -> tuple[TrainConfig, list[Complaint]]:
    """A config in which every faulty setting has its default, and what was wrong with those settings."""
    sound, complaints = copy.deepcopy(tree), []
    while True:
        try:
            return TrainConfig.model_validate(sound), complaints
        except ValidationError as error:
            for item in error.errors():
                complaints.append(from_pydantic(item, TrainConfig))
                _set_aside(sound, item)


def _set_aside(tree: dict[str, Any], item: dict[str, Any]) -> None:
    """Remove a faulty setting from the tree, or put a stand-in where there is no default."""
    section, key = (*item["loc"], None)[:2]
    if key is None or not isinstance(tree.get(section), dict):
        tree.pop(section, None)
    else:
        tree[section].pop(key, None)
    if section == "data":
        tree.setdefault("data", {}).setdefault("train", ["-"])
