"""Judging a run's draft on its held-out conversations gives what validation gives, one conversation at a time."""

import pytest
import torch
from tiny_runs import metrics, tiny_config, write_conversations

from dflash.errors import UserError
from dflash.evaluation.held_out import score_held_out
from dflash.training.trainer import train


@pytest.fixture(scope="module")
def run_dir(tiny_target_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    config = tiny_config(tiny_target_folder, write_conversations(folder / "c.jsonl"), data={"validation_size": 3})
    train(config, folder / "run", progress=False)
    return folder / "run"


def test_all_conversations_together_are_the_last_validation(run_dir, tiny_target):
    scores = score_held_out(run_dir, tiny_target, num_anchors=8)
    validation = metrics(run_dir, "validation")[-1]
    count = torch.tensor([score.count for score in scores]).sum(0)
    assert count.tolist() == validation["slot_count"]
    for ours, theirs in (("correct", "slot_accuracy"), ("reached", "slot_prefix")):
        hits = torch.tensor([getattr(score, ours) for score in scores]).sum(0)
        assert (hits / count).tolist() == pytest.approx(validation[theirs])


def test_each_held_out_conversation_has_its_own_counts(run_dir, tiny_target):
    scores = score_held_out(run_dir, tiny_target, num_anchors=4)
    assert len({score.id for score in scores}) == len(scores) == 3
    assert all(score.count[0] == 4 for score in scores)
    assert all(c >= r for score in scores for c, r in zip(score.correct, score.reached, strict=True))


def test_another_block_size_than_the_trained_one_is_judged_on_the_same_anchors(run_dir, tiny_target):
    own = score_held_out(run_dir, tiny_target, num_anchors=8)
    larger = score_held_out(run_dir, tiny_target, num_anchors=8, block_size=6)
    assert [len(score.count) for score in larger] == [5, 5, 5]
    assert [score.count for score in own] == [score.count[:3] for score in larger]


def test_a_run_without_a_checkpoint_is_refused(tmp_path, tiny_target_folder, tiny_target):
    from dflash.training.run_folder import RunFolder

    config = tiny_config(tiny_target_folder, write_conversations(tmp_path / "c.jsonl"))
    RunFolder.create(tmp_path / "run", config)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        score_held_out(tmp_path / "run", tiny_target, num_anchors=4)
