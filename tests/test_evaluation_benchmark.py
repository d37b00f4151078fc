"""The benchmark pairs, pools, checks identity, and loses nothing when interrupted."""

import json

import pytest
import torch

import dflash.evaluation.benchmark as benchmark
from dflash.data.conversations import Prompt
from dflash.decoding.comparison import Comparison
from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling
from dflash.errors import UserError
from dflash.evaluation.benchmark import EvaluationSettings, evaluate, evaluate_to_file
from dflash.evaluation.journal import progress_of
from dflash.evaluation.results import pool, result_of
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from scripted_proposer import ScriptedProposer

PROMPTS = [
    Prompt("a", ["Two words", "And then?"], "math", "English", "one"),
    Prompt("b", ["Another one"], "code", "English", "one"),
    Prompt("c", ["A third"], "math", "German", "two"),
]
SETTINGS = EvaluationSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def engine(tiny_target) -> Engine:
    torch.manual_seed(1)
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=3, block_size=4)
    return Engine(tiny_target, DFlashDraft(config).eval())


def quiet(engine, prompts=PROMPTS, settings=SETTINGS, **options):
    return evaluate(engine, prompts, settings, progress=False, **options)


def test_every_prompt_is_paired_checked_and_pooled(engine):
    report = quiet(engine)
    assert json.loads(json.dumps(report)) == report
    assert [r["id"] for r in report["results"]] == ["a", "b", "c"]
    pooled = report["pooled"]
    assert (pooled["prompts"], pooled["identical"], pooled["checked"]) == (3, 3, 3)
    assert pooled["tau"] == sum(r["decoded_tokens"] for r in report["results"]) / sum(
        r["steps"] for r in report["results"]
    )
    assert pooled["speedup"] == sorted(r["speedup"] for r in report["results"])[1]
    assert pooled["acceptance"]["steps"] == pooled["steps"]
    assert len(pooled["acceptance"]["cumulative"]) == 3
    for field, sizes in {
        "by_set": {"one": 2, "two": 1},
        "by_category": {"math": 2, "code": 1},
        "by_language": {"English": 2, "German": 1},
    }.items():
        assert {name: p["prompts"] for name, p in report[field].items()} == sizes
    assert report["machine"]["dtype"] == "float32" and report["machine"]["threads"] == 1


def test_tau_as_emitted_and_tau_of_uncut_blocks_have_names_of_their_own(tiny_target):
    text = Engine(tiny_target).decode_target([1, 2, 3], max_new_tokens=64, stop_ids=()).finish().tokens
    engine = Engine(tiny_target, proposer=ScriptedProposer(text, lambda rng: 3))
    trace = engine.decode_draft([1, 2, 3], max_new_tokens=7, stop_ids=()).finish()
    pooled = pool([_result(trace)])
    assert pooled["tau"] == 3, "6 tokens behind the prefill's one, in 2 steps: the limit cut the second block"
    assert pooled["acceptance"]["tau_uncut"] == 4


def _result(trace) -> dict:
    labels = {"set": "s", "id": "a", "category": "c", "language": "l", "skipped": 0}
    return labels | result_of(Comparison(trace, trace, None, None, None))


def test_the_order_of_the_two_sides_alternates(engine):
    assert [r["draft_first"] for r in quiet(engine)["results"]] == [False, True, False]


def test_sampling_is_measured_without_a_claim_of_identity(engine):
    pooled = quiet(engine, settings=EvaluationSettings(8, Sampling(1.0, "rejection")))["pooled"]
    assert pooled["checked"] == 0 and pooled["tau"] >= 1


def test_all_turns_are_answered_with_the_answers_as_history(engine):
    results = quiet(engine, settings=EvaluationSettings(12, turns="all"))["results"]
    assert [(r["id"], r["turn"]) for r in results] == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    assert results[1]["prompt_tokens"] > results[0]["prompt_tokens"] + results[0]["decoded_tokens"]


def test_a_conversation_that_outgrows_the_context_ends_early_and_is_counted(engine):
    long = [Prompt("long", ["Hi", "x" * 600], "chat")]
    pooled = quiet(engine, long, EvaluationSettings(12, turns="all"))["pooled"]
    assert (pooled["turns"], pooled["skipped"]) == (1, 1)


def test_prompts_are_checked_before_anything_is_decoded(engine, monkeypatch):
    monkeypatch.setattr(engine, "warm_up", lambda *_: pytest.fail("decoded before checking"))
    with pytest.raises(UserError, match="'long'.*context"):
        quiet(engine, [PROMPTS[0], Prompt("long", ["x" * 600])])
    with pytest.raises(UserError, match="Two prompts of set 'one' have the id 'a'"):
        quiet(engine, [PROMPTS[0], PROMPTS[0]])
    with pytest.raises(UserError, match="turns"):
        EvaluationSettings(turns="last")
    with pytest.raises(UserError, match="no draft"):
        quiet(Engine(engine.target))


def test_an_interrupted_evaluation_goes_on_where_it_was(engine, tmp_path, monkeypatch):
    out, seen = tmp_path / "new" / "out.json", []

    def interrupt(result):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(result)

    with pytest.raises(KeyboardInterrupt):
        evaluate_to_file(engine, PROMPTS, out, SETTINGS, progress=False, on_result=interrupt)
    partial = tmp_path / "new" / "out.json.partial.jsonl"
    with open(partial, "ab") as file:
        file.write(b'{"key": "torn')
    assert progress_of(out) == (3, 3)
    decoded = []
    real = benchmark.compare
    monkeypatch.setattr(benchmark, "compare", lambda *a, **k: (decoded.append(a[1]), real(*a, **k))[1])
    report = evaluate_to_file(engine, [*PROMPTS, Prompt("d", ["New"])], out, SETTINGS, progress=False)
    assert len(decoded) == 1, "the third was on disk before its callback failed, so only the new prompt is decoded"
    assert report["results"][:2] == seen
    assert json.loads(out.read_text()) == report
    assert progress_of(out) is None
    assert not partial.exists()


def test_a_journal_of_other_settings_is_refused_not_overwritten(engine, tmp_path):
    path = tmp_path / "partial.jsonl"
    quiet(engine, PROMPTS[:1], journal_path=path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="other settings.*max_new_tokens"):
        quiet(engine, PROMPTS[:1], EvaluationSettings(13), journal_path=path)
    assert path.read_bytes() == before


def test_another_draft_of_the_same_shape_counts_as_other_settings(engine, tmp_path):
    path = tmp_path / "partial.jsonl"
    quiet(engine, PROMPTS[:1], journal_path=path)
    torch.manual_seed(2)
    other = Engine(engine.target, DFlashDraft(engine.draft.config).eval())
    with pytest.raises(UserError, match="other settings.*draft"):
        quiet(other, PROMPTS[:1], journal_path=path)


def test_results_of_several_sets_pool_into_one(engine):
    first, second = (quiet(engine, prompts)["results"] for prompts in (PROMPTS[:1], PROMPTS[1:]))
    assert pool([*first, *second])["prompts"] == 3
    assert pool([])["tau"] is None
