"""A draft with a vocabulary of its own proposes nothing else, and changes no text."""

import json

import pytest
import torch

from dflash.decoding.engine import Engine
from dflash.decoding.proposer import DraftProposer
from dflash.decoding.sampling import Dice, Sampling, probabilities
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.model.vocabulary import VOCABULARY_FILE, DraftHead

PROMPT = [5, 9, 200, 31, 77, 8]


@pytest.fixture
def draft(tiny_target):
    torch.manual_seed(1)
    return DFlashDraft(DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4)).eval()


def propose(target, draft, sampling):
    drafting = DraftProposer(target, draft).start()
    with torch.inference_mode():
        drafting.extend(target.features(torch.tensor([PROMPT]), draft.config.target_layer_ids))
        return drafting.propose(torch.tensor([[40]]), 3, sampling, Dice(0, 8, torch.device("cpu")))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8), Sampling(0.8, "rejection")], ids=str)
def test_only_tokens_of_the_vocabulary_are_proposed_and_the_text_is_the_targets(tiny_target, draft, sampling):
    draft.vocabulary = torch.arange(1, 264, 2)
    trace = Engine(tiny_target, draft).decode_draft(
        PROMPT, max_new_tokens=30, sampling=sampling, stop_ids=()
    ).finish()
    assert all(token % 2 == 1 for step in trace.steps for token in step.proposed)
    if sampling.rule == "target":
        plain = Engine(tiny_target).decode_target(
            PROMPT, max_new_tokens=30, sampling=sampling, shape="block", block_size=4, stop_ids=()
        ).finish()
        assert trace.tokens == plain.tokens


def test_the_best_token_of_the_vocabulary_is_proposed(tiny_target, draft):
    everything = propose(tiny_target, draft, Sampling()).tokens
    draft.vocabulary = torch.arange(264)
    assert torch.equal(propose(tiny_target, draft, Sampling()).tokens, everything)
    draft.vocabulary = torch.tensor([t for t in range(264) if t != int(everything[0])])
    assert propose(tiny_target, draft, Sampling()).tokens[0] != everything[0]


def test_sampled_proposals_carry_their_distribution_over_the_whole_vocabulary(tiny_target, draft):
    draft.vocabulary = torch.arange(0, 264, 3)
    probs = propose(tiny_target, draft, Sampling(0.8, "rejection")).probs
    assert probs.shape == (3, 264)
    torch.testing.assert_close(probs.sum(-1), torch.ones(3))
    assert probs[:, torch.arange(264) % 3 != 0].eq(0).all()


def test_the_cut_down_head_is_the_same_rows_of_the_whole_one():
    torch.manual_seed(0)
    head, hidden, ids = torch.nn.Linear(8, 20), torch.randn(5, 8), torch.tensor([2, 3, 19])
    cut = DraftHead(head, ids)
    torch.testing.assert_close(cut(hidden), head(hidden)[:, ids])
    torch.testing.assert_close(cut.spread(probabilities(cut(hidden), 1.0)).sum(-1), torch.ones(5))
    assert cut.tokens(torch.tensor([2, 0])).tolist() == [19, 2]


def test_the_vocabulary_travels_with_the_folder(draft, tmp_path):
    draft.vocabulary = torch.tensor([3, 7, 200])
    draft.save_pretrained(tmp_path)
    assert DFlashDraft.from_pretrained(tmp_path).vocabulary.tolist() == [3, 7, 200]
    draft.vocabulary = None
    draft.save_pretrained(tmp_path)
    assert DFlashDraft.from_pretrained(tmp_path).vocabulary is None, "no stale file stays behind"


@pytest.mark.parametrize("text", ["{", "[]", '{"token_ids": []}', '{"token_ids": [1, 264]}', '{"token_ids": ["a"]}'])
def test_a_damaged_vocabulary_is_refused_by_name(draft, tmp_path, text):
    draft.save_pretrained(tmp_path)
    (tmp_path / "checksums.json").unlink()
    (tmp_path / VOCABULARY_FILE).write_text(text)
    with pytest.raises(UserError, match=VOCABULARY_FILE):
        DFlashDraft.from_pretrained(tmp_path)


def test_the_file_is_plain_json(draft, tmp_path):
    draft.vocabulary = torch.tensor([3, 7])
    draft.save_pretrained(tmp_path)
    assert json.loads((tmp_path / VOCABULARY_FILE).read_text()) == {"token_ids": [3, 7]}
