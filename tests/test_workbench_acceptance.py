"""What the Acceptance page shows: the answer in words, tables behind figures, sentences where something is missing."""

from dataclasses import replace

import pytest
from acceptance_results import PROMPTS, write_result

from dflash.config import default_gamma, load_config
from dflash.errors import UserError
from dflash.evaluation.report_file import read_report
from dflash.recipes import resolve_recipe
from workbench import acceptance_view, compare_view, speed_view
from workbench.figures.whatif import Dot
from workbench.missed_view import missed_tokens
from workbench.run_reader import RunsRoot
from workbench.trained_gamma import trained_gamma


@pytest.fixture(scope="module")
def result(tiny_target, tmp_path_factory):
    return read_report(write_result(tiny_target, tmp_path_factory.mktemp("acceptance") / "a.json", right=2))


@pytest.fixture
def old(result):
    return replace(result, answers=tuple(replace(answer, detail=None) for answer in result.answers))


def test_the_lead_answers_where_drafts_die_and_says_what_is_recorded(result):
    counts = result.counts
    shown = acceptance_view.lead(result, None)
    assert f"<strong>{100 * counts.histogram[0] / counts.steps:.0f} %</strong> of blocks die at their first" in shown
    assert "Recorded" not in shown and "3 of 3" in shown
    recorded = acceptance_view.lead(result, {"machine": "M <1>", "date": "2026-01-01", "command": "c"})
    assert "Recorded · M &lt;1&gt; · 2026-01-01" in recorded


def test_names_from_files_cannot_become_markup(result):
    evil = replace(result, draft_name="<script>", answers=tuple(replace(a, set="<i>") for a in result.answers))
    assert "<script>" not in acceptance_view.lead(evil, None) and "<i>," not in acceptance_view.lead(evil, None)


def test_missed_tokens_are_escaped_and_say_where(result):
    detail = result.answers[0].detail
    assert list(detail.misses()), "the scripted draft must err"
    pieces = tuple("<b>" for _ in detail.pieces)
    evil = replace(result, answers=(replace(result.answers[0], detail=replace(detail, pieces=pieces)),))
    shown = missed_tokens(evil)
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    assert "entropy of the target" in shown


def test_every_figure_has_a_table_and_old_files_have_a_sentence_instead(result, old):
    for figure in (acceptance_view.by_place, acceptance_view.by_entropy, acceptance_view.distribution):
        plot, table = figure(result)
        assert plot is not None and "<table>" in table
    for figure in (acceptance_view.by_place, acceptance_view.by_entropy):
        plot, said = figure(old)
        assert plot is None and "evaluate again" in said
    assert "evaluate again" in missed_tokens(old)
    assert acceptance_view.distribution(old)[0] is not None


def test_groups_are_those_of_the_prompts(result):
    figure, table = acceptance_view.by_group(result, "language")
    assert set(figure.layout.yaxis.ticktext) == {"English", "German", "French"}
    assert "French" in table
    with pytest.raises(UserError, match="choose one of set, category, language"):
        acceptance_view.by_group(result, "mood")


def test_two_results_are_compared_on_the_prompts_they_share(tiny_target, result, tmp_path):
    other = read_report(write_result(tiny_target, tmp_path / "b.json", right=0, prompts=PROMPTS[:2]))
    sentence, (figure, table) = compare_view.one_against_another(("a", result), ("b", other))
    assert "b yields -" in sentence or "+0.00" in sentence
    assert "Over 2 shared prompts" in sentence and "first a" in table
    over, table = compare_view.over_results([("a", result), ("b", other)])
    assert list(over.layout.yaxis.ticktext) == ["a", "b"] and table.count("<tr>") == 3
    lone = replace(other, answers=(replace(other.answers[0], id="elsewhere"),))
    plot, said = compare_view.over_results([("a", result), ("b", lone)])
    assert plot is None and "share no prompt" in said
    assert "share no prompt" in compare_view.one_against_another(("a", result), ("b", lone))[1][1]


def test_checkpoints_of_one_run_come_in_their_order(result):
    over, _ = compare_view.over_results([("run/step_3", result), ("run/step_1", result), ("run/step_2", result)])
    assert list(over.layout.yaxis.ticktext) == ["run/step_1", "run/step_2", "run/step_3"]


def test_results_that_were_decoded_otherwise_are_not_drawn_beside_one_another(result):
    longer = replace(result, settings=result.settings | {"max_new_tokens": 4096})
    plot, said = compare_view.over_results([("a", result), ("b", result), ("c", longer)])
    assert plot is None and "a and c: These evaluations differ in max_new_tokens (24 and 4096)" in said


def test_the_weights_are_called_those_of_the_training_only_where_they_are(result):
    own, _ = acceptance_view.survival(result, 2.5, 2.5)
    assert own.data[0].name == "weight in training (gamma 2.5)"
    for trained_with in (1.5, None):
        figure, table = acceptance_view.survival(result, 4.0, trained_with)
        assert figure.data[0].name == "weight at gamma 4" and "weight at gamma 4" in table


def test_gamma_is_read_from_the_run_or_from_the_recipe_of_the_shipped_draft(result, tmp_path):
    runs = RunsRoot(tmp_path)
    for name, blocks in (("steep", "gamma: 1.5"), ("plain", "gamma: null"), ("odd", "anchors: 3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"draft:\n  block_size: 16\nblocks:\n  {blocks}\n")
    assert trained_gamma("steep/step_1", result, runs) == 1.5
    assert trained_gamma("plain/step_1", result, runs) == default_gamma(16)
    for name in ("odd/step_1", "gone/step_1", "loose"):
        assert trained_gamma(name, result, runs) is None
    shipped = replace(result, draft_name="shipped", settings=result.settings | {"target": "smollm2-135m"})
    assert trained_gamma("recorded", shipped, runs) == load_config(resolve_recipe("smollm2-135m-cpu")).gamma == 2.5


def test_what_if_starts_from_what_was_measured(result):
    dot = speed_view.measured_dot("a", result)
    assert dot.cost.target == result.step_ms["target"]
    answer, (figure, table) = speed_view.whatif(dot, [dot])
    assert f"{dot.cost.speedup(dot.tau):.2f}<small>×" in answer and "<table>" in table
    with pytest.raises(UserError, match="tau is 0.5"):
        speed_view.whatif(Dot("x", dot.cost, 0.5), [])


def test_without_a_measurement_the_block_sizes_say_so():
    sentence, speeds, costs = speed_view.block_sizes(None)
    assert "Nothing was measured yet" in sentence and speeds is costs is None
