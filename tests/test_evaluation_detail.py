"""The detail of a result says where blocks died and how sure the target was, without touching what is decoded."""

import json

import pytest
import torch
from scripted_proposer import ScriptedProposer

from dflash.data.conversations import Prompt
from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling
from dflash.errors import UserError
from dflash.evaluation.benchmark import EvaluationSettings, evaluate, evaluate_to_file
from dflash.evaluation.detail import detail_of, text_entropy
from dflash.evaluation.report_file import Detail, parse_report, read_report, write_report

PROMPT = [5, 9, 77, 31]


@pytest.fixture(scope="module")
def known(tiny_target) -> list[int]:
    """The target's own continuation of PROMPT."""
    return Engine(tiny_target).decode_target(PROMPT, max_new_tokens=64, stop_ids=()).finish().tokens


def decoded(target, known, right, new_tokens=24, **options):
    engine = Engine(target, proposer=ScriptedProposer(known, right))
    return engine.decode_draft(PROMPT, max_new_tokens=new_tokens, stop_ids=(), **options).finish()


def typed(target, trace) -> Detail:
    recorded = json.loads(json.dumps(detail_of(target, PROMPT, trace)))
    return Detail(**{name: tuple(values) for name, values in recorded.items()})


def test_every_miss_names_the_drafts_token_the_targets_and_the_text_before(tiny_target, known):
    trace = decoded(tiny_target, known, lambda rng: rng.randrange(4), new_tokens=40)
    detail = typed(tiny_target, trace)
    misses = list(detail.misses())
    expected = [step for step in trace.decode_steps if step.accepted < min(len(step.proposed), len(step.emitted))]
    assert len(misses) == len(expected) > 3
    for miss, step in zip(misses, expected, strict=True):
        assert (miss.draft_token, miss.target_token) == (step.proposed[step.accepted], step.correction)
        assert miss.slot == step.accepted + 1
        assert known[miss.position] == miss.target_token
        assert "".join(detail.pieces[: miss.position]).endswith(miss.before)


def test_judged_drafts_are_the_accepted_ones_and_the_missed_ones(tiny_target, known):
    trace = decoded(tiny_target, known, lambda rng: rng.randrange(4), new_tokens=40)
    detail = typed(tiny_target, trace)
    judged = list(detail.judgements())
    whole = trace.decode_steps[:-1]
    last = judged[-1]
    assert sum(j.accepted for j in judged) >= sum(step.accepted for step in whole)
    assert [j.position for j in judged] == sorted({j.position for j in judged}), "each position is judged once at most"
    assert {j.position for j in judged if not j.accepted} == {miss.position for miss in detail.misses()}
    assert last.position < len(detail.tokens)
    assert sum(detail.emitted) == len(detail.tokens) - 1 == trace.decoded_tokens


def test_a_block_accepted_whole_and_a_text_cut_before_the_refusal_hold_no_miss(tiny_target, known):
    assert not list(typed(tiny_target, decoded(tiny_target, known, lambda rng: 3)).misses())
    cut = decoded(tiny_target, known, lambda rng: 2, new_tokens=3)  # prefill's one, two accepted, limit
    assert [step.accepted for step in cut.decode_steps] == [2]
    assert typed(tiny_target, cut).missed == (None,)


def test_entropy_is_that_of_the_targets_distribution_over_the_whole_text(tiny_target, known):
    tokens = known[:21]
    with torch.inference_mode():
        ids = torch.tensor([PROMPT + tokens])
        logits = tiny_target.model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].double()
    expected = torch.distributions.Categorical(logits=logits).entropy().tolist()
    for width in (2, 4, 16):
        assert text_entropy(tiny_target, PROMPT, tokens, width) == pytest.approx(expected, abs=1e-4)
    assert text_entropy(tiny_target, PROMPT, tokens[:1], 4) == pytest.approx(expected[:1], abs=1e-4)


def test_entropy_reaches_the_very_end_of_the_targets_context(tiny_target):
    prompt = [7] * (tiny_target.max_length - 9)
    tokens = Engine(tiny_target).decode_target(prompt, max_new_tokens=9, stop_ids=()).finish().tokens
    assert len(text_entropy(tiny_target, prompt, tokens, 4)) == 9


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, "target", 3)])
def test_recording_leaves_decoding_bit_identical(tiny_target, known, sampling, monkeypatch):
    engine = Engine(tiny_target, proposer=ScriptedProposer(known, lambda rng: 2))
    prompts = [Prompt("a", ["One"], set="s"), Prompt("b", ["Two"], set="s")]
    settings = EvaluationSettings(16, sampling)
    recorded = evaluate(engine, prompts, settings, progress=False)["results"]
    monkeypatch.setattr("dflash.evaluation.benchmark.detail_of", lambda *_: None)
    engine.proposer.rng.seed(0)
    plain = evaluate(engine, prompts, settings, progress=False)["results"]
    for name in ("answer", "accepted_histogram", "steps", "decoded_tokens", "identical"):
        assert [r[name] for r in recorded] == [r[name] for r in plain]


def test_a_result_file_reads_back_typed(tiny_target, known, tmp_path):
    engine = Engine(tiny_target, proposer=ScriptedProposer(known, lambda rng: 2))
    prompts = [Prompt("a", ["One"], "math", "English", "s"), Prompt("b", ["Two"], "code", "German", "s")]
    out = tmp_path / "result.json"
    report = evaluate_to_file(engine, prompts, out, EvaluationSettings(16), draft_name="mine", progress=False)
    read = read_report(out)
    assert (read.draft_name, read.block_size, read.has_detail) == ("mine", 4, True)
    assert [(a.prompt, a.category, a.language) for a in read.answers] == [
        (("s", "a"), "math", "English"),
        (("s", "b"), "code", "German"),
    ]
    assert [answer.tau for answer in read.answers] == [result["tau"] for result in report["results"]]
    assert read.counts.to_dict() == report["pooled"]["acceptance"]
    assert read.step_ms["target"] == report["pooled"]["target_step_ms"]
    assert [list(answer.detail.entropy) for answer in read.answers] == [
        r["detail"]["entropy"] for r in report["results"]
    ]
    assert json.loads(out.read_text()) == report


def test_a_file_of_an_older_version_is_read_without_detail(tiny_target, known, tmp_path):
    engine = Engine(tiny_target, proposer=ScriptedProposer(known, lambda rng: 2))
    report = evaluate(engine, [Prompt("a", ["One"], set="s")], EvaluationSettings(8), progress=False)
    report.pop("format")
    for result in report["results"]:
        for name in ("detail", "language", "set"):
            result.pop(name)
    old = parse_report(report, "old.json")
    assert not old.has_detail and old.answers[0].detail is None
    assert old.counts.steps == report["pooled"]["steps"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda report: report.update(format=99), "format 99"),
        (lambda report: report.pop("results"), "no result of `dflash evaluate`"),
        (lambda report: report.update(results=[]), "holds no results"),
        (lambda report: report["results"][0]["detail"]["entropy"].pop(), "does not fit together"),
        (lambda report: report["results"][0]["detail"]["accepted"].append(3), "does not fit together"),
        (lambda report: report["results"][0].update(accepted_histogram=3), "no result of `dflash evaluate`"),
    ],
)
def test_a_damaged_or_newer_file_is_named_in_one_sentence(tiny_target, known, tmp_path, damage, said):
    engine = Engine(tiny_target, proposer=ScriptedProposer(known, lambda rng: 2))
    report = evaluate(engine, [Prompt("a", ["One"], set="s")], EvaluationSettings(8), progress=False)
    damage(report)
    path = tmp_path / "bad.json"
    if report.get("results"):
        write_report(path, report)
    else:
        path.write_text(json.dumps(report))
    with pytest.raises(UserError, match=said) as raised:
        read_report(path)
    assert "bad.json" in str(raised.value)
