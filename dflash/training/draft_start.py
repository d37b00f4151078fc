"""The draft a run begins with: new, warm from the target, a continued one, or the one of a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dflash.config import TrainConfig
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.model.draft_folder import CONFIG_FILE
from dflash.model.draft_types import draft_class
from dflash.model.vocabulary import load_vocabulary
from dflash.objectives.candidates import frequent_tokens
from dflash.target import TargetModel
from dflash.training.warm_start import warm_start
from dflash.training.world import World

_NOT_SHAPE = ("init", "type", "vocabulary_size")  # settings that a draft's own config does not know


def start_draft(config: TrainConfig, target: TargetModel, texts: Sequence[list[int]], world: World) -> DFlashDraft:
    """The fp32 draft of a new run, as `draft.init` says.

    Args:
        texts: token ids of the training data, for a warm start and for the draft's vocabulary.
        world: a warm start is rank 0's work, which alone needs the target's layers; the others get its weights when
            the draft is sharded (`prepare_draft`).

    Raises:
        UserError: the draft to continue does not exist, or contradicts the target or the config.
    """
    draft = _created(config, target, texts, world)
    if config.draft.vocabulary_size is not None:
        draft.vocabulary = frequent_tokens(texts, config.draft.vocabulary_size, target.vocab_size)
    return draft


def resumed_draft(config: TrainConfig, target: TargetModel, checkpoint: Path, device: torch.device) -> DFlashDraft:
    """A draft of a checkpoint's shape; its weights follow in full precision.

    Raises:
        UserError: the shape contradicts the target or the config.
    """
    folder = checkpoint / "draft"
    try:
        draft_config = DFlashConfig.from_public(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Checkpoint {str(checkpoint)!r} holds no readable draft ({error}): remove that folder to resume from the "
            "one before it."
        ) from error
    draft = draft_class(config.draft.type)(draft_config)
    draft.vocabulary = load_vocabulary(folder, draft_config.vocab_size)
    draft.check_target(target)
    _refuse_contradictions(config, draft, str(folder), defaults_count=True)
    proposes_from = None if draft.vocabulary is None else len(draft.vocabulary)
    if config.draft.vocabulary_size not in (None, proposes_from):
        raise UserError(
            f"draft.vocabulary_size = {config.draft.vocabulary_size} contradicts the draft in {str(folder)!r}, which "
            f"has {proposes_from or 'all tokens'}."
        )
    return draft.to(device).train()


def with_shape(config: TrainConfig, draft: DFlashDraft) -> TrainConfig:
    """The config with the shape that the draft really has, where it names one: a continued draft brings its own."""
    has = {name: getattr(draft.config, name) for name, asked in _shape(config).items() if asked is not None}
    return config.model_copy(update={"draft": config.draft.model_copy(update=has)})


def _created(config: TrainConfig, target: TargetModel, texts: Sequence[list[int]], world: World) -> DFlashDraft:
    wanted = config.draft
    if wanted.init not in ("random", "warm"):
        return _continued(config, target, world.device)
    draft_config = DFlashConfig.for_target(
        target,
        num_hidden_layers=wanted.num_hidden_layers,
        num_features=wanted.num_features,
        block_size=wanted.block_size,
        target_layer_ids=wanted.target_layer_ids,
        mask_token_id=wanted.mask_token_id,
        sliding_window=wanted.sliding_window,
        intermediate_size=wanted.intermediate_size,
    )
    draft = draft_class(wanted.type)(draft_config).to(world.device)
    if wanted.init == "warm":
        world.on_main(lambda: warm_start(draft, target, texts[0]))
    return draft


def _continued(config: TrainConfig, target: TargetModel, device: torch.device) -> DFlashDraft:
    folder = config.draft.init
    draft = draft_class(config.draft.type).from_pretrained(folder, dtype="float32", device=device).train()
    draft.check_target(target)
    _refuse_contradictions(config, draft, folder, defaults_count=False)
    return draft


def _refuse_contradictions(config: TrainConfig, draft: DFlashDraft, folder: str, *, defaults_count: bool) -> None:
    """A new run's config spells out every default, so only another value was asked for; a run's own has true values."""
    fields = type(config.draft).model_fields
    for name, asked in _shape(config).items():
        has = getattr(draft.config, name)
        if asked not in (None, has) and (defaults_count or asked != fields[name].default):
            raise UserError(
                f"draft.{name} = {asked} contradicts the draft in {folder!r}, which has {has}: set draft.{name}={has}."
            )


def _shape(config: TrainConfig) -> dict[str, Any]:
    return {name: getattr(config.draft, name) for name in type(config.draft).model_fields if name not in _NOT_SHAPE}
