"""The draft a run begins with: new, warm from the target, a continued one, or the one of a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from dflash.config import TrainConfig
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import CONFIG_FILE, DFlashDraft
from dflash.model.draft_types import draft_class
from dflash.model.vocabulary import load_vocabulary
from dflash.objectives.candidates import frequent_tokens
from dflash.target import TargetModel
from dflash.training.warm_start import warm_start

_NOT_SHAPE = ("init", "type", "vocabulary_size")  # settings that a draft's own config does not know


def start_draft(
    config: TrainConfig, target: TargetModel, texts: Sequence[list[int]], device: torch.device
) -> DFlashDraft:
    """The fp32 draft of a new run, as `draft.init` says.

    Args:
        texts: token ids of the training data, for a warm start and for the draft's vocabulary.

    Raises:
        UserError: the draft to continue does not exist, or contradicts the target or the config.
    """
    draft = _created(config, target, texts, device)
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
    _refuse_contradictions(config, draft, str(folder))
    proposes_from = None if draft.vocabulary is None else len(draft.vocabulary)
    if config.draft.vocabulary_size not in (None, proposes_from):
        raise UserError(
            f"draft.vocabulary_size = {config.draft.vocabulary_size} contradicts the draft in {str(folder)!r}, which "
            f"has {proposes_from or 'all tokens'}."
        )
    return draft.to(device).train()


def _created(
    config: TrainConfig, target: TargetModel, texts: Sequence[list[int]], device: torch.device
) -> DFlashDraft:
    wanted = config.draft
    if wanted.init not in ("random", "warm"):
        return _continued(config, target, device)
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
    draft = draft_class(wanted.type)(draft_config).to(device)
    if wanted.init == "warm":
        warm_start(draft, target, texts[0])
    return draft


def _continued(config: TrainConfig, target: TargetModel, device: torch.device) -> DFlashDraft:
    folder = config.draft.init
    draft = draft_class(config.draft.type).from_pretrained(folder, dtype="float32", device=device).train()
    draft.check_target(target)
    _refuse_contradictions(config, draft, folder)
    return draft


def _refuse_contradictions(config: TrainConfig, draft: DFlashDraft, folder: str) -> None:
    # A resolved config spells out every default, so only a setting that differs from its default was asked for.
    for name, field in type(config.draft).model_fields.items():
        asked = getattr(config.draft, name)
        if name not in _NOT_SHAPE and asked not in (None, field.default, getattr(draft.config, name)):
            has = getattr(draft.config, name)
            raise UserError(f"draft.{name} = {asked} contradicts the draft in {folder!r}, which has {has}.")
