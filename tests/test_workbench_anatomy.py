"""Anatomy lays out the real pipeline objects without changing them."""

import pytest

from dflash.data.conversations import Conversation, parse_conversation
from dflash.errors import UserError
from workbench.anatomy import AnatomySettings, cell_view, dissect, slot_table, summary, token_payload
from workbench.examples import EXAMPLE_CONVERSATIONS

TALK = Conversation("t", [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello there, friend."}])


@pytest.fixture(scope="module")
def anatomy(tiny_target):
    return dissect(tiny_target, TALK, AnatomySettings(num_anchors=6, block_size=4, gamma=2.0, seed=1))


def test_the_same_seed_gives_the_same_anchors_and_another_seed_others(tiny_target, anatomy):
    def anchors(seed):
        return dissect(tiny_target, TALK, AnatomySettings(num_anchors=6, block_size=4, gamma=2.0, seed=seed)).anchors

    assert anchors(1) == anatomy.anchors
    assert anchors(2) != anatomy.anchors


def test_slots_hold_the_anchor_then_masks_and_their_labels_follow_the_text(anatomy):
    rows = slot_table(anatomy, 2)
    anchor = anatomy.anchors[2]
    assert rows[0]["input"] == anatomy.pieces[anchor] and rows[0]["weight"] == 0
    assert {row["input"] for row in rows[1:]} == {anatomy.mask_token}
    assert [row["label"] for row in rows] == anatomy.pieces[anchor : anchor + 4]
    assert rows[1]["weight"] == pytest.approx(1.0)


def test_every_cell_is_explained_as_it_is_drawn(anatomy):
    view = cell_view(anatomy, 2)
    for cells, sentences in zip(view.visible, view.words, strict=True):
        for cell, sentence in zip(cells, sentences, strict=True):
            assert cell == (" sees " in sentence and "sees nothing" not in sentence)
    assert len(view.column_names) == len(view.visible[0])


def test_a_dropped_block_sees_nothing_and_says_so(tiny_target):
    sparse = dissect(tiny_target, TALK, AnatomySettings(num_anchors=200, block_size=4))
    block = len(sparse.anchors)
    assert not any(map(any, cell_view(sparse, block).visible))
    assert all(row["weight"] == 0 and "dropped" in row["reason"] for row in slot_table(sparse, block))
    assert token_payload(sparse, block)["span"] is None


def test_tokens_carry_loss_exactly_where_the_assistant_speaks(anatomy):
    tokens = token_payload(anatomy, 0)["tokens"]
    assert "".join(token["text"] for token in tokens if token["taught"]) == "Hello there, friend.<|im_end|>"


def test_the_summary_counts_every_tile_once(anatomy):
    tiles = summary(anatomy, 0)["tiles"]
    assert tiles["full"] + tiles["partial"] + tiles["empty"] == anatomy.tiles.state.numel()


@pytest.mark.parametrize("name", EXAMPLE_CONVERSATIONS)
def test_every_built_in_conversation_can_be_taken_apart(tiny_target, name):
    conversation = Conversation(name, EXAMPLE_CONVERSATIONS[name])
    assert dissect(tiny_target, conversation, AnatomySettings()).anchors


@pytest.mark.parametrize(
    "options", [{"num_anchors": 0}, {"block_size": 1}, {"gamma": 0.0}, {"window": 0}, {"num_anchors": 513}]
)
def test_impossible_settings_are_refused_in_a_sentence(options):
    with pytest.raises(UserError, match="must"):
        AnatomySettings(**options)


def test_a_conversation_without_an_answer_teaches_nothing(tiny_target):
    with pytest.raises(UserError, match="no assistant message"):
        dissect(tiny_target, Conversation("q", [{"role": "user", "content": "Anyone?"}]), AnatomySettings())


@pytest.mark.parametrize("line", ["", "[1]", "{", '{"messages": []}', '{"messages": [{"role": "alien", "content": "x"}]}'])
def test_a_bad_pasted_line_is_named(line):
    with pytest.raises(UserError, match="^The pasted line"):
        parse_conversation(line, "The pasted line")
