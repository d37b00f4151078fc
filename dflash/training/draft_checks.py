"""Can the run's draft be begun? Judged by the files of the draft that it goes on from, before anything is loaded."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from dflash.complaints import Complaint
from dflash.config import DraftConfig, TrainConfig
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import FROM_SCRATCH, read_draft_shape


def start_complaints(config: TrainConfig, facts: TargetFacts | None) -> Iterator[Complaint]:
    """The draft folder to go on from: there, whole, of this target, and of the shape that the config spells out."""
    init = config.draft.init
    if init in FROM_SCRATCH:
        return
    folder = Path(init)
    if not (folder / "config.json").is_file():
        close = difflib.get_close_matches(init.lower(), FROM_SCRATCH, n=1)
        remedy = f"write draft.init={close[0]}" if close else "choose one of those"
        yield Complaint(
            ("draft.init",),
            f"draft.init = {init!r} is neither 'random' nor 'warm' nor a draft folder with a config.json: {remedy}.",
        )
        return
    shape = read_draft_shape(init)
    if shape is None or not (folder / "model.safetensors").is_file():
        yield Complaint(
            ("draft.init",),
            f"draft.init = {init!r} is no whole draft: it needs a DFlash config.json and model.safetensors, as "
            "checkpoints/step_N/draft of a run has them.",
        )
        return
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if facts is not None:
        expected = {
            "hidden size": (shape.hidden_size, facts.hidden_size),
            "vocabulary": (tree.get("vocab_size"), facts.vocab_size),
            "depth of the target": (tree.get("num_target_layers"), facts.depth),
        }
        wrong = [f"{what} {its} instead of {ours}" for what, (its, ours) in expected.items() if its != ours]
        if wrong:
            yield Complaint(
                ("draft.init", "target"),
                f"draft.init = {init!r} was made for another target than {config.target.name!r} ({', '.join(wrong)}): "
                "choose a draft of this target.",
            )
    yield from _contradicting_shape(config.draft, tree)


def _contradicting_shape(draft: DraftConfig, tree: dict) -> Iterator[Complaint]:
    """A resolved config spells out every default, so only a setting that differs from its default was asked for."""
    inner = tree["dflash_config"]
    has = {
        **{name: tree.get(name) for name in ("num_hidden_layers", "block_size", "intermediate_size", "sliding_window")},
        "num_features": len(inner["target_layer_ids"]),
        "target_layer_ids": inner["target_layer_ids"],
        "mask_token_id": inner.get("mask_token_id"),
    }
    for name, value in has.items():
        asked = getattr(draft, name)
        if asked not in (None, DraftConfig.model_fields[name].default, value):
            yield Complaint(
                (f"draft.{name}", "draft.init"),
                f"draft.{name} = {asked} contradicts the draft in draft.init = {draft.init!r}, which has {value}: "
                "remove the setting.",
            )
