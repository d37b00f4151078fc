"""Anatomy lays out the real pipeline objects without changing them."""

import json
import tempfile

import pytest

from dflash.data.conversations import Conversation, parse_conversation
from dflash.errors import UserError
from workbench.anatomy import (
    AnatomySettings,
    cell_view,
    dissect,
    dissect_row,
    explain_cell,
    slot_table,
    summary,
    tile_counts,
    tile_view,
    token_payload,
)
from workbench.anatomy_query import DEFAULTS, OWN, AnatomyQuery, input_store
from workbench.anatomy_rows import MAX_FILE_BYTES, built_in_rows, file_rows, text_rows
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


def line(*said: str) -> str:
    roles = ("user", "assistant")
    return json.dumps({"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]})


def test_packed_conversations_keep_to_themselves(tiny_target):
    lines = "\n".join([line("Hi", "Hello there."), line("Yes?", "No, not now.")])
    rows = text_rows(tiny_target, lines, packing=True, length=256)
    view = dissect_row(tiny_target, rows.rows[0], AnatomySettings(num_anchors=40, block_size=4), 256)
    assert len(rows.rows) == 1 and len(view.row.starts) == 2 and view.plan.sequence_length == 256
    second = view.row.starts[1]
    block = next(number for number, anchor in enumerate(view.anchors) if anchor > second + 2)
    foreign = explain_cell(view, block * 4, second - 1)
    assert not foreign["visible"] and "another document" in foreign["why"]
    assert explain_cell(view, block * 4, second)["visible"]
    last = max(number for number, anchor in enumerate(view.anchors) if anchor < second)
    beyond = [row for row in slot_table(view, last) if row["position"] >= second]
    assert beyond and all(row["weight"] == 0 and row["label"] is None for row in beyond)
    assert any("another document" in row["reason"] for row in beyond)


def test_a_sliding_window_hides_what_lies_further_back(tiny_target):
    options = {"num_anchors": 6, "block_size": 4, "seed": 1}
    view = dissect(tiny_target, TALK, AnatomySettings(window=3, **options))
    anchor = view.anchors[4]
    assert explain_cell(view, 16, anchor - 2)["visible"]
    hidden = explain_cell(view, 16, anchor - 3)
    assert not hidden["visible"] and "sliding window of 3 tokens" in hidden["why"]
    causal = explain_cell(view, 16, view.plan.sequence_length + 17)
    assert not causal["visible"] and "causal" in causal["why"]


def test_training_scale_has_5120_tiles_and_most_are_skipped(tiny_target):
    row = built_in_rows(tiny_target, DEFAULTS.conversation, packing=True, length=2048).rows[0]
    view = dissect_row(tiny_target, row, AnatomySettings(num_anchors=512, block_size=16, gamma=7.0), 2048)
    counts = tile_counts(view)
    assert (counts["slots"], counts["keys"], counts["cells"]) == (8192, 10240, 83_886_080)
    assert counts["tiles"] == 5120 == counts["full"] + counts["partial"] + counts["empty"]
    assert counts["skipped"] > 0.8
    assert counts["visible_cells"] <= counts["computed_cells"] < counts["cells"]


def test_a_tile_shows_the_cells_that_it_counts(anatomy):
    view = tile_view(anatomy, 0, 0)
    assert sum(map(sum, view.visible)) == int(anatomy.tiles.seen[0, 0])
    assert len(view.row_names) == len(view.words) == anatomy.slots
    with pytest.raises(UserError, match="Tile 9, 0 does not exist"):
        tile_view(anatomy, 9, 0)


def test_every_bad_line_of_a_file_is_a_sentence_and_the_good_ones_are_used(tiny_target, tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join([line("Hi", "Hello there."), "{", '{"messages": []}', line("Only a question")]))
    rows = file_rows(tiny_target, path, packing=False, length=256)
    assert rows.conversations == 1
    assert [words.split(":")[0] for words in rows.complaints()] == [f"Line {n} is left out" for n in (2, 3, 4)]
    assert "not valid JSON" in rows.complaints()[0] and "supervised" in rows.complaints()[2]


def test_a_file_of_nothing_useful_is_named_without_its_temporary_path(tiny_target, tmp_path):
    path = tmp_path / "upload-8d2f.jsonl"
    path.write_text("{")
    with pytest.raises(UserError, match="^The pasted text holds no conversations") as refused:
        text_rows(tiny_target, "{", packing=False, length=256)
    assert "/tmp" not in str(refused.value)
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(UserError, match="upload-8d2f.jsonl has more than 20 MB"):
        file_rows(tiny_target, path, packing=False, length=256)


def test_pasted_text_that_is_too_long_never_reaches_the_disk(tiny_target, monkeypatch):
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda *args, **options: pytest.fail("it was written"))
    with pytest.raises(UserError, match="The pasted text has more than 20 MB"):
        text_rows(tiny_target, "x" * (MAX_FILE_BYTES + 1), packing=False, length=256)


def test_a_link_names_every_setting_and_keeps_pasted_conversations(tmp_path):
    shape = {"length": 512, "anchors": 9, "size": 4, "gamma": 2.5, "window": 16}
    query = AnatomyQuery(packing=True, item=2, seed=7, block=3, tile="0, 2", **shape)
    values = {name: str(value) for name, value in query.to_query().items()}
    assert AnatomyQuery.from_query(values, tmp_path) == query
    assert query.place == (0, 2)
    kept = input_store(tmp_path).save(line("Hi", "Hello."))
    own = AnatomyQuery.from_query({"input": kept}, tmp_path)
    assert own.conversation == OWN and own.line == line("Hi", "Hello.")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"anchors": "many"}, "The link's anchors is 'many'"),
        ({"gamma": "nan"}, "The link's gamma"),
        ({"packing": "yes"}, "must be 1 or 0"),
        ({"input": "../../etc/passwd"}, "names no saved set of conversations"),
        ({"input": "0" * 24}, "not here any more"),
        ({"conversation": OWN}, "names no kept conversation"),
    ],
)
def test_a_broken_link_is_answered_with_a_sentence(tmp_path, query, words):
    with pytest.raises(UserError, match=words):
        AnatomyQuery.from_query(query, tmp_path)


@pytest.mark.parametrize("tile", ["1", "a, b", "1, 2, 3"])
def test_a_tile_that_is_none_is_refused(tile):
    with pytest.raises(UserError, match="names no tile"):
        AnatomyQuery(tile=tile).place


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
