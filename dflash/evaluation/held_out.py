"""What a run's draft gets right on the conversations that the run held out, one conversation at a time.

Validation while training pools everything and draws as many anchors as training does. To compare drafts that were
trained differently they must be judged on the same anchors, and an interval needs the conversations apart.
"""

from dataclasses import replace
from pathlib import Path

import torch

from dflash.config import TrainConfig, load_config
from dflash.errors import UserError
from dflash.evaluation.score import ConversationScore
from dflash.features.in_process import InProcessFeatures
from dflash.features.micro_batch import MicroBatchPreparer
from dflash.features.source import open_source
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel
from dflash.training.order import row_generators, validation_portions
from dflash.training.run_data import load_run_data
from dflash.training.run_folder import RunFolder
from dflash.training.step import DraftStep
from dflash.training.world import World


@torch.no_grad()
def score_held_out(
    run_dir: Path | str, target: TargetModel, *, num_anchors: int, block_size: int | None = None
) -> list[ConversationScore]:
    """Judge the newest checkpoint's draft by the whole vocabulary.

    The anchors depend on the run's seed and on the place of a conversation among the held-out ones alone, so runs of
    one seed and one data set are judged on the same ones.

    Args:
        run_dir: a run on one process, of any settings but packing, whose rows are no single conversations.
        target: the run's; its layers are only needed where the run computes features in process.
        num_anchors: blocks per conversation, fewer where it has fewer supervised tokens.
        block_size: slots per block, the anchor included, also more than the draft was trained with (no weight belongs
            to a slot); None takes the draft's own.

    Raises:
        UserError: the run has no checkpoint or packs its rows, or its data or features are gone.
    """
    run = RunFolder(run_dir)
    run.check_is_run()
    config = load_config(run.path / "config.yaml")
    if config.data.packing:
        raise UserError(f"Run {str(run.path)!r} packs conversations into rows, so none can be judged alone.")
    device = target.device
    world = World(0, 1, device)
    draft = _newest_draft(run, device)
    draft.check_target(target)
    if block_size is not None:
        draft.config = replace(draft.config, block_size=block_size)
    rows = load_run_data(config, target, run, world).validation
    if config.features.source == "online":  # its servers are long gone, and the target is here
        source = InProcessFeatures(target, draft.config.target_layer_ids)
    else:
        source = open_source(config, target, draft.config.target_layer_ids, rows)
    step = DraftStep(draft, target, _judged_with(config, num_anchors), device)
    prepare = MicroBatchPreparer(source, device)
    scores = []
    try:
        for portion, _ in validation_portions(rows, 1, rank=0, world_size=1):
            generators = row_generators(config.run.seed, "validation", portion.positions)
            _, counted = step(prepare(portion.rows), generators)
            sums = (tuple(map(round, part[1:].tolist())) for part in (counted.count, counted.correct, counted.prefix))
            scores.append(ConversationScore(portion.rows[0].ids[0], *sums))
    finally:
        source.close()
    return scores


def _newest_draft(run: RunFolder, device: torch.device) -> DFlashDraft:
    folders = sorted(run.checkpoints.glob("step_*/draft"))  # a checkpoint gets this name when it is complete
    if not folders:
        raise UserError(f"Run {str(run.path)!r} holds no complete checkpoint: let it train, or resume it.")
    return DFlashDraft.from_pretrained(folders[-1], dtype="float32", device=device)


def _judged_with(config: TrainConfig, num_anchors: int) -> TrainConfig:
    return config.model_copy(update={"blocks": config.blocks.model_copy(update={"num_anchors": num_anchors})})
