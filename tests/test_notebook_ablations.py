"""The notebooks' runs are made once, kept run by run, and compared pair by pair."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ablation.conclusion import conclusion
from ablation.results import RunResult, append_result, read_results
from ablation.runner import Runner
from ablation.settings import ABLATIONS, ablation
from ablation.statistics import slot_accuracy, tau, tau_difference, verdict
from trim_report import trimmed

from dflash.errors import UserError
from dflash.evaluation.report_file import parse_report
from dflash.evaluation.score import ConversationScore

GAMMA = ablation("03")


def result(value: float, seed: int, reached: list[tuple[int, ...]], used: int = 4) -> RunResult:
    """Conversations of ten blocks each whose blocks got as far as `reached` says."""
    scores = tuple(
        ConversationScore(f"c{seed}-{number}", (10,) * (used - 1), counts, counts)
        for number, counts in enumerate(reached)
    )
    machine = {"cpu": "a cpu", "cpu_count": 2, "packages": {"torch": "2"}, "git_commit": None}
    made = ("dflash capture base.yaml", f"dflash train base.yaml blocks.gamma={value:g}")
    return RunResult(value, seed, made, {}, 80, 120.0, 4.5, 10, "2026-11-23", machine, {used: scores})


BASE = [result(2.5, seed, [(4, 2, 1), (6, 3, 1), (5, 2, 0), (4, 1, 0)]) for seed in (0, 1)]
BETTER = [result(4.0, seed, [(6, 3, 1), (8, 5, 2), (7, 3, 1), (6, 2, 1)]) for seed in (0, 1)]


def test_a_result_file_gives_back_what_was_appended(tmp_path):
    path = tmp_path / "results" / "one.jsonl"
    for one in BASE:
        append_result(path, one)
    assert read_results(path) == BASE
    assert read_results(tmp_path / "absent.jsonl") == []


def test_a_torn_line_is_named(tmp_path):
    path = tmp_path / "one.jsonl"
    append_result(path, BASE[0])
    path.write_text(path.read_text() + '{"value": 4')
    with pytest.raises(UserError, match="Line 2 of"):
        read_results(path)


def test_tau_pools_counts_and_not_rates():
    uneven = [result(4.0, 0, [(9, 9, 9)]), result(4.0, 1, [(0, 0, 0)] * 3)]
    estimate = tau(uneven, 4.0, 4)
    assert estimate.value == pytest.approx(1 + 3 * 9 / 40)
    assert estimate.seeds == {0: pytest.approx(3.7), 1: pytest.approx(1.0)}
    assert (estimate.conversations, estimate.blocks) == (4, 40)
    assert estimate.low < estimate.value < estimate.high


def test_a_setting_that_is_better_everywhere_is_called_higher():
    difference = tau_difference(BASE + BETTER, 4.0, 2.5, used=4)
    assert difference.value == pytest.approx(tau(BETTER, 4.0, 4).value - tau(BASE, 2.5, 4).value)
    assert verdict(difference) == "higher"
    assert verdict(tau_difference(BASE + BETTER, 2.5, 4.0, used=4)) == "lower"


def test_pairing_makes_equal_drafts_equal_whatever_the_conversations_are():
    same = [replace(one, value=4.0) for one in BASE]
    difference = tau_difference(BASE + same, 4.0, 2.5, used=4)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert verdict(difference) == "no difference beyond the interval"


def test_one_seed_is_said_to_be_one_and_seeds_that_disagree_decide_nothing():
    assert verdict(tau_difference([BASE[0], BETTER[0]], 4.0, 2.5, used=4)) == "higher, by one seed alone"
    worse = result(4.0, 1, [(4, 2, 1), (6, 3, 1), (5, 1, 0), (4, 1, 0)])
    much_better = result(4.0, 0, [(9, 9, 9), (9, 9, 9), (9, 9, 9), (9, 9, 9)])
    assert verdict(tau_difference([*BASE, much_better, worse], 4.0, 2.5, used=4)) == "the seeds disagree"


def test_runs_judged_on_other_conversations_are_not_paired():
    other = replace(BETTER[0], held_out={4: tuple(replace(s, id="x" + s.id) for s in BETTER[0].held_out[4])})
    with pytest.raises(UserError, match="other conversations"):
        tau_difference([BASE[0], other], 4.0, 2.5, used=4)


def test_the_conclusion_says_what_the_verdicts_say():
    sentences = conclusion(replace(GAMMA, used=(4,)), BASE + BETTER, 4)
    assert len(sentences) == 1
    assert sentences[0].startswith("gamma 4 instead of 2.5: tau is **higher** by 0.")
    assert "8 conversations" in sentences[0] and "2 seeds" in sentences[0]
    same = [replace(one, value=4.0) for one in BASE]
    assert "**no difference beyond the interval**" in conclusion(GAMMA, BASE + same, 4)[0]


def test_a_missing_run_is_named():
    with pytest.raises(UserError, match="No run of 7 was judged with block size 4"):
        tau(BASE, 7, 4)


def test_slot_accuracy_is_pooled_over_seeds():
    assert slot_accuracy(BASE, 2.5, 4) == pytest.approx([19 / 40, 8 / 40, 2 / 40])


def test_the_baseline_is_one_run_for_all_ablations():
    names = {one.run_name(one.baseline, 1) for one in ABLATIONS}
    assert names == {"base-seed1"}
    assert all(one.baseline in one.values and one.baseline in one.small for one in ABLATIONS)


def test_the_base_config_has_each_ablations_baseline():
    from dflash.config import load_config

    config = load_config(Path(__file__).parents[1] / "notebooks" / "ablation.yaml").model_dump()
    for one in ABLATIONS:
        section, _, key = one.setting.partition(".")
        assert config[section][key] == one.baseline


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A runner whose commands leave the folder of a finished run, and whose drafts are judged without a model."""
    executed = []

    def execute(command):
        executed.append(command)
        name = command[command.index("--name") + 1] if "--name" in command else Path(command[-1]).name
        folder = made.runs / name
        folder.mkdir(parents=True, exist_ok=True)
        gamma = next((part.partition("=")[2] for part in command if part.startswith("blocks.gamma")), "2.5")
        (folder / "config.yaml").write_text(f"blocks: {{gamma: {gamma}}}\n")
        (folder / "environment.json").write_text("{}")
        (folder / "status.json").write_text(json.dumps({"state": "finished"}))
        record = {"kind": "train", "step": 80, "loss": 4.5, "slot_count": [128.0, 120.0]}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")

    made = Runner(Path("base.yaml"), *(tmp_path / name for name in ("features", "runs", "results")), execute=execute)
    monkeypatch.setattr("ablation.runner.score_held_out", lambda *_, **__: BASE[0].held_out[4])
    monkeypatch.setattr(Runner, "_target", None)
    return made, executed


def test_what_is_finished_is_not_made_again(runner):
    made, executed = runner
    made.run(GAMMA, (2.5, 4.0), seed=0)
    made.run(GAMMA, (2.5, 4.0), seed=0)
    assert [one.key for one in read_results(made.file(GAMMA))] == [(2.5, 0), (4.0, 0)]
    assert len(executed) == 2
    base, changed = executed
    assert not any(part.startswith("blocks.gamma") for part in base) and "base-seed0" in base
    assert "blocks.gamma=4" in changed and "run.seed=0" in changed


def test_an_interrupted_run_is_resumed_and_one_without_a_checkpoint_begins_again(runner):
    made, executed = runner
    folder = made.runs / GAMMA.run_name(4.0, 0)
    (folder / "checkpoints" / "step_0000040").mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "stopped"}))
    other = made.runs / GAMMA.run_name(7.0, 0)
    other.mkdir()
    (other / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was not made with blocks.gamma=4"):
        made.run(GAMMA, (4.0,), seed=0)  # the fake resumes it with the base's gamma, which must be noticed
    made.run(GAMMA, (7.0,), seed=0)
    assert executed[0] == ("dflash", "train", "--resume", str(folder))
    assert executed[1][:3] == ("dflash", "train", "base.yaml") and "--name" in executed[1]


def test_a_trimmed_report_keeps_figures_and_the_texts_of_misses_alone():
    detail = {
        "accepted": [1, 0],
        "missed": [7, None],
        "missed_pieces": [" wrong", None],
        "tokens": [3, 4, 5, 6],
        "pieces": ["The", " secret", " right", " end"],
        "entropy": [0.5, 0.1, 1.5, 0.2],
    }
    row = {
        "id": "q1",
        "turn": 0,
        "steps": 2,
        "decoded_tokens": 3,
        "prompt_tokens": 9,
        "speedup": 1.5,
        "identical": True,
        "accepted_histogram": [1, 1],
        "answer": "The secret right end",
        "detail": detail,
    }
    pooled = {"target_step_ms": 1.0, "mean_step_ms": {}, "speedup": 1.5}
    record = {
        "format": 2, "settings": {"block_size": 2, "draft": "d"}, "machine": {}, "pooled": pooled, "results": [row]
    }
    small = trimmed(record)
    assert "secret" not in json.dumps(small) and " right" in json.dumps(small)
    (before,), (after,) = (parse_report(one, "report").answers for one in (record, small))
    assert [(j.position, j.slot, j.accepted, j.entropy) for j in before.detail.judgements()] == [
        (j.position, j.slot, j.accepted, j.entropy) for j in after.detail.judgements()
    ]
    assert next(iter(after.detail.misses())).target_text == " right"
