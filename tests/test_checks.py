"""The sanity gates: a sound implementation passes, and one that is broken on purpose does not."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

import dflash.blocks.attention as attention
import dflash.blocks.mask as mask
import dflash.blocks.plan as plan
from dflash.blocks.attention import ATTENTION_FORMS
from dflash.checks.layers import check_layers
from dflash.checks.leak import check_leak
from dflash.checks.overfit import OverfitSettings, check_overfit
from dflash.checks.texts import answered_prompts
from dflash.checks.visibility import Block, must_see_context, must_see_slot, must_see_token
from dflash.cli.main import main
from dflash.config import parse_config
from dflash.data.conversations import Conversation
from dflash.data.rows import build_rows
from dflash.data.template import render
from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.features.micro_batch import MicroBatchPreparer
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel
from dflash.training.order import row_generators
from dflash.training.step import DraftStep

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
QUESTION = Conversation("q", [{"role": "user", "content": "count to ten"}])
QUICK = OverfitSettings(num_features=3, block_size=4, max_steps=80, every=20, lr=3e-3, answer_tokens=32)


@pytest.fixture(scope="module")
def talking_folder(tiny_target_folder, tmp_path_factory):
    """The tiny target, made to write printable characters only, so that its answers survive being text."""
    folder = tmp_path_factory.mktemp("talking-target")
    target = TargetModel.load(tiny_target_folder, dtype="float32")
    model: LlamaForCausalLM = target.model
    vocabulary = target.tokenizer.get_vocab()
    silent = [i for i in range(264) if i not in {vocabulary[c] for c in map(chr, range(33, 127))}]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
    model.save_pretrained(folder)
    target.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def talking(talking_folder):
    return TargetModel.load(talking_folder, dtype="float32")


def fresh_draft(target, **changes):
    torch.manual_seed(1)
    settings = {"num_hidden_layers": 2, "num_features": 3, "block_size": 4, **changes}
    return DFlashDraft(DFlashConfig.for_target(target, **settings)).eval()


# --- leak ---


@pytest.mark.parametrize("window", [None, 4])
def test_the_second_statement_of_the_rule_agrees_with_the_mask(window):
    anchors = torch.tensor([[3, 9, 12]])
    starts = torch.tensor([[0] * 8 + [8] * 12])
    ids = torch.zeros(1, 20, dtype=torch.long)
    keep = torch.tensor([[True, True, False]])
    laid = plan.lay_out(ids, ids > -1, anchors, keep, block_size=4, gamma=4.0, document_start=starts)
    dense = mask.dense_mask(laid, window)[0]
    blocks = [Block(0, i, a, s, k) for i, (a, s, k) in enumerate([(3, 0, True), (9, 8, True), (12, 8, False)])]
    for block in blocks:
        for slot in range(4):
            row = dense[block.index * 4 + slot]
            for position in range(20):
                assert row[position] == must_see_context(block, slot, position, window, True)
            for other in blocks[:2]:
                for k in range(4):
                    assert row[20 + other.index * 4 + k] == must_see_slot(block, slot, other, k, window)
    assert must_see_token(blocks[1], 2, 0, 9) and not must_see_token(blocks[1], 2, 0, 10)
    assert not must_see_token(blocks[1], 2, 0, 7), "of another document"


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}])
def test_nothing_leaks_in_any_form_of_the_mask(tiny_target, changes):
    report = check_leak(fresh_draft(tiny_target, **changes), tiny_target, progress=False)
    assert report.passed and report.reason == ""
    assert {case.form for case in report.cases} == set(ATTENTION_FORMS)
    assert {case.window for case in report.cases} == {None, changes.get("sliding_window", 6)}
    assert max(case.outside for case in report.cases) == 0.0
    assert min(case.inside for case in report.cases) > 0.0


def broken(monkeypatch, predicate):
    for module in (mask, attention):
        monkeypatch.setattr(module, "sees_context", predicate)


@pytest.mark.parametrize("form", list(ATTENTION_FORMS))
def test_a_mask_that_shows_the_anchors_own_feature_is_caught(tiny_target, monkeypatch, form):
    def with_anchor(start, anchor, slot, position, window):
        return (start <= position) & (position <= anchor)

    broken(monkeypatch, with_anchor)
    report = check_leak(fresh_draft(tiny_target), tiny_target, forms=[form], windows=[None], progress=False)
    assert not report.passed and all(case.outside > 0 for case in report.cases if case.changed != "tokens")
    assert "must not see: it is the anchor's own, which does not exist yet when decoding" in report.reason


@pytest.mark.parametrize(
    ("predicate", "sentence"),
    [
        (lambda start, anchor, slot, p, w: p < anchor, "it belongs to another document"),
        (lambda start, anchor, slot, p, w: (start <= p) & (p < anchor) & (p >= anchor - (w or 99) + 1), "window of 5"),
        (lambda start, anchor, slot, p, w: (start <= p) & (p < anchor - 1), "does not react to the feature at 3"),
    ],
)
def test_other_broken_masks_are_caught_and_named(tiny_target, monkeypatch, predicate, sentence):
    broken(monkeypatch, predicate)
    report = check_leak(fresh_draft(tiny_target), tiny_target, forms=["split"], windows=[None, 5], progress=False)
    assert not report.passed
    assert any(sentence in text for case in report.cases for text in case.complaints)


def test_a_target_that_sees_packed_neighbours_is_caught(tiny_target, monkeypatch):
    def whole_rows(self, rows, *, length=None):
        ids = torch.zeros(len(rows), length or max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row.input_ids)
        return tiny_target.features(ids, self._layer_ids)

    monkeypatch.setattr(InProcessFeatures, "__call__", whole_rows)
    report = check_leak(fresh_draft(tiny_target), tiny_target, forms=["split"], windows=[None], progress=False)
    (case,) = [case for case in report.cases if not case.passed]
    assert case.changed == "tokens" and "it belongs to another document" in report.reason


def test_a_draft_that_computes_nothing_is_refused(tiny_target):
    draft = fresh_draft(tiny_target)
    draft.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        check_leak(draft, tiny_target, forms=["split"], progress=False)


# --- overfit ---


def test_a_sound_implementation_overfits_until_decoding_accepts_a_full_block(talking):
    seen = []
    state = torch.get_rng_state()
    report = check_overfit(talking, QUESTION, QUICK, progress=False, on_point=seen.append)
    assert report.passed and report.reason == ""
    assert tuple(seen) == report.points and report.points[-1].longest == 3
    assert report.points[-1].tau > report.points[0].tau or len(report.points) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_shifted_by_one_are_caught_and_named(talking, monkeypatch):
    sound = plan.lay_out

    def shifted(input_ids, *args, **kwargs):
        moved = torch.cat([input_ids[:, 1:], input_ids[:, -1:]], dim=1)
        return sound(moved, *args, **kwargs)

    monkeypatch.setattr(plan, "lay_out", shifted)
    report = check_overfit(talking, QUESTION, QUICK, progress=False)
    assert not report.passed and len(report.points) == 4
    assert "the target's text moved by +1. Look at the labels" in report.reason


def test_features_that_run_one_token_ahead_in_training_are_caught(talking, monkeypatch):
    sound = InProcessFeatures.__call__
    monkeypatch.setattr(InProcessFeatures, "__call__", lambda *a, **k: sound(*a, **k).roll(-1, dims=1))
    report = check_overfit(talking, QUESTION, QUICK, progress=False)
    assert not report.passed and "training and decoding disagree" in report.reason


def test_a_draft_that_does_not_learn_is_told_apart(talking):
    settings = OverfitSettings(num_features=3, block_size=4, max_steps=2, every=1, lr=1e-6, answer_tokens=16)
    report = check_overfit(talking, QUESTION, settings, progress=False)
    assert not report.passed and "it does not learn" in report.reason


def test_another_template_in_decoding_than_in_training_is_named(talking, monkeypatch):
    monkeypatch.setattr("dflash.checks.overfit.render_prompt", lambda *_, **__: [65, 66, 67, 68])
    settings = OverfitSettings(num_features=3, block_size=4, max_steps=1, answer_tokens=16)
    report = check_overfit(talking, QUESTION, settings, progress=False)
    assert not report.passed and "chat template" in report.reason


def test_texts_that_cannot_hold_a_full_block_are_refused(talking):
    with pytest.raises(UserError, match="answer_tokens 7"):
        OverfitSettings(block_size=4, answer_tokens=7)
    with pytest.raises(UserError, match="no question"):
        check_overfit(talking, Conversation("empty", [{"role": "assistant", "content": "hi"}]), QUICK, progress=False)


# --- layers ---


@pytest.fixture(scope="module")
def trained_folders(talking_folder, tmp_path_factory):
    """Drafts trained on the right layers and on those one above, each said to read the right ones."""
    return {off: _trained(talking_folder, tmp_path_factory.mktemp(f"off{off}"), off) for off in (0, 1)}


def _trained(target_folder, folder, off):
    target = TargetModel.load(target_folder, dtype="float32")
    draft = fresh_draft(target, target_layer_ids=[1, 2, 3]).train()
    right, layers = draft.config.target_layer_ids, [i + off for i in draft.config.target_layer_ids]
    rows = _rows(target)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)

    config = parse_config(
        {
            "data": {"train": ["x"]},
            "draft": {"block_size": 4},
            "blocks": {"num_anchors": 8},
            "run": {"autocast": False},
        },
        "test",
    )
    micro = MicroBatchPreparer(InProcessFeatures(target, layers), "cpu")(rows)
    step = DraftStep(draft, target, config, torch.device("cpu"))
    for i in range(50):
        loss, statistics = step(micro, row_generators(i, "test", range(len(rows))))
        (loss / statistics.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert draft.config.target_layer_ids == right
    draft.save_pretrained(folder)
    return str(folder)


def _rows(target):
    return build_rows(_conversations(target), max_length=512, packing=False)


def _conversations(target):
    return [render(c, target.tokenizer) for c in answered_prompts(target, max_new_tokens=24)]


def test_the_layers_a_draft_was_trained_on_are_best_by_a_margin(talking, trained_folders):
    draft = DFlashDraft.from_pretrained(trained_folders[0], dtype="float32")
    report = check_layers(draft, talking, _conversations(talking), progress=False)
    below, own, above = report.rows
    assert report.passed and report.skipped_offsets == ()
    assert (below.offset, own.offset, above.offset) == (-1, 0, 1) and own.layer_ids == (1, 2, 3)
    for row in (below, above):
        assert 0 < row.loss_increase.low < row.loss_increase.value < row.loss_increase.high
        assert row.loss_increase.value == pytest.approx(row.loss - own.loss, abs=1e-5)
        assert row.tau_decrease.value == pytest.approx(own.tau_estimate - row.tau_estimate, abs=1e-5)


def test_features_captured_one_layer_off_are_caught(talking, trained_folders):
    draft = DFlashDraft.from_pretrained(trained_folders[1], dtype="float32")
    report = check_layers(draft, talking, _conversations(talking), progress=False)
    assert not report.passed and "better on features +1 layer off" in report.reason and "[2, 3, 4]" in report.reason


def test_a_draft_that_has_learnt_nothing_does_not_pass(talking):
    report = check_layers(fresh_draft(talking), talking, _conversations(talking), progress=False)
    assert not report.passed and report.reason


def test_offsets_beyond_the_target_are_left_out_and_named(talking):
    draft = fresh_draft(talking, target_layer_ids=[0, 2, 4])
    assert check_layers(draft, talking, _conversations(talking), progress=False).skipped_offsets == (-1,)
    with pytest.raises(UserError, match="nothing to compare"):
        check_layers(fresh_draft(talking, target_layer_ids=[0, 5]), talking, _conversations(talking), progress=False)
    with pytest.raises(UserError, match="2 usable conversations"):
        check_layers(draft, talking, _conversations(talking)[:2], progress=False)


# --- the command ---


def run(capsys, *arguments):
    code = main(["check", *arguments, "--device", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_leak_prints_a_table_and_one_json_object(talking_folder, capsys, monkeypatch):
    code, out, _ = run(capsys, "leak", "--target", talking_folder, "--block-size", "4")
    assert code == 0 and "PASSED: no block reacts" in out and len(out.splitlines()) == 16
    assert out.startswith("Draft: fresh, random, blocks of 4\n"), "which draft was tested"
    broken(monkeypatch, lambda start, anchor, slot, p, w: p <= anchor)
    code, out, _ = run(capsys, "leak", "--target", talking_folder, "--draft", "fresh", "--block-size", "4", "--json")
    report = json.loads(out)
    assert code == 1 and report["gate"] == "leak" and report["passed"] is False
    assert report["reason"] and report["cases"][0]["violations"] > 0 and report["tolerance"] == 0.0


def test_check_overfit_reads_a_conversation_by_its_id(talking_folder, capsys, tmp_path):
    path = tmp_path / "talk.jsonl"
    lines = [
        {"id": f"c{i}", "messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x"}]}
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--target", talking_folder, "--dtype", "float32", "--features", "3", "--block-size", "4"]
    options += ["--lr", "3e-3", "--max-steps", "80", "--every", "20", "--answer-tokens", "32"]
    code, out, _ = run(capsys, "overfit", "--conversations", str(path), "--id", "c1", *options)
    assert code == 0 and "PASSED: after" in out and "'c1'" in out and "tau" in out.splitlines()[0]
    code, out, _ = run(capsys, "overfit", "--prompt", "say 1", *options[:-6], "--max-steps", "1", "--json")
    report = json.loads(out)
    assert code == 1 and report["reason"] and report["points"][0]["step"] == 1
    code, _, err = run(capsys, "overfit", "--conversations", str(path), "--id", "c9", *options)
    assert code == 2 and "no conversation with the id 'c9'" in err


def test_check_layers_takes_a_draft_and_a_file(talking_folder, talking, trained_folders, capsys, tmp_path):
    path = tmp_path / "held-out.jsonl"
    answered = answered_prompts(talking, max_new_tokens=24)
    lines = [{"id": c.id, "messages": c.messages, "finished": False} for c in answered]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--target", talking_folder, "--dtype", "float32", "--conversations", str(path)]
    code, out, _ = run(capsys, "layers", *options, "--draft", trained_folders[0])
    assert code == 0 and "PASSED: the draft's own layers are best" in out and "1,2,3" in out
    code, out, _ = run(capsys, "layers", *options, "--draft", trained_folders[1], "--json")
    report = json.loads(out)
    assert code == 1 and "+1 layer off" in report["reason"] and len(report["rows"]) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["overfit", "--id", "c1"], "--id names a conversation of a file"),
        (["overfit", "--answer-tokens", "10"], "answer_tokens 10 leaves no room"),
        (["leak", "--draft", "some/folder", "--block-size", "8"], "--block-size shapes a fresh draft only"),
        (["layers", "--limit", "9"], "--limit counts conversations of a file"),
        (["layers", "--conversations", "missing.jsonl"], "missing.jsonl could not be read"),
    ],
)
def test_options_that_would_do_nothing_are_refused(capsys, arguments, sentence):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and sentence in err and err.count("\n") == 1 and not out
