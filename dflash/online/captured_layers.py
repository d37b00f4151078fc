"""The target layers that a run's servers have to capture, known before anything is loaded."""

import json
from pathlib import Path

from dflash.config import TrainConfig
from dflash.layer_ids import default_layer_ids
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import FROM_SCRATCH


def captured_layers(config: TrainConfig, facts: TargetFacts | None, run_dir: Path | None = None) -> tuple[int, ...]:
    """Those of the newest checkpoint in `run_dir`, of the draft that is continued, as configured, or spread evenly.

    Empty where they cannot be told: the target or the draft is unknown, which others complain about.
    """
    drafts = sorted(run_dir.glob("checkpoints/step_*/draft"), reverse=True) if run_dir else []
    if config.draft.init not in FROM_SCRATCH:
        drafts.append(Path(config.draft.init))
    for folder in drafts:
        try:
            tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return tuple(tree["dflash_config"]["target_layer_ids"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damage is for whoever loads it
    if config.draft.target_layer_ids is not None:
        return tuple(config.draft.target_layer_ids)
    if facts is None or facts.depth < config.draft.num_features + 3 and config.draft.num_features > 1:
        return ()
    return tuple(default_layer_ids(facts.depth, config.draft.num_features))
