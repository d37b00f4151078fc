"""The Acceptance page in a browser: figures of a linked result, comparison, what-if, and an evaluation really run."""

import json
from pathlib import Path

import pytest
from acceptance_results import PROMPTS, write_result
from ending_jobs import end_all
from waiting import until
from workbench_server import running_workbench, save_tiny_draft

from workbench.jobs import Jobs

pytestmark = pytest.mark.browser

SIZES = {
    "format": 1,
    "kind": "block sizes",
    "draft_name": "scripted",
    "settings": {"draft": "x", "prompts": 1},
    "machine": {"cpu": "C", "threads": 2, "dtype": "float32"},
    "target_ms": 2.0,
    "sizes": [
        {"block_size": size, "draft_ms": 1.0, "verify_ms": 2.0, "overhead_ms": 0.1, "steps": 3}
        | {"tau": 1.5, "speedup": size / 2, "speedup_range": [0.4 * size, 0.6 * size]}
        for size in (2, 3, 4)
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("acceptance") / "runs"


@pytest.fixture(scope="module")
def workbench(tiny_target, tiny_target_folder, runs) -> str:
    """A workbench with two results of three prompts, a measurement of block sizes, and a checkpoint to evaluate."""
    write_result(tiny_target, runs / "run-1" / "eval" / "step_1.json", right=0, draft_name="run-1/step_1")
    write_result(tiny_target, runs / ".evaluations" / "newest.json", right=3)
    (runs / ".evaluations" / "block-sizes").mkdir()
    (runs / ".evaluations" / "block-sizes" / "x.json").write_text(json.dumps(SIZES))
    (runs / ".prompts").mkdir()
    (runs / ".prompts" / "mine.jsonl").write_text('{"id": "a", "turns": ["Hello"]}\n')
    draft = save_tiny_draft(tiny_target, runs / "run-1" / "checkpoints" / "step_0000002" / "draft")
    with running_workbench(tiny_target_folder, draft, str(runs)) as address:
        yield address
    end_all(Jobs(runs))


def shown(visit, query: str = "", **options):
    tab = visit(f"acceptance{query}", **options)
    tab.page.set_default_timeout(120_000)  # nine figures on a crowded machine are slow, not wrong
    tab.page.wait_for_selector(".df-accept")
    tab.page.wait_for_selector("#whatif .js-plotly-plot")
    return tab


def test_the_newest_result_opens_with_its_answer_figures_and_a_table_behind_each(visit):
    page = shown(visit).page
    assert "of blocks die at their first guess" in page.inner_text(".df-answer")
    drawn = [name for name in _FIGURES if page.query_selector(f"#{name} .js-plotly-plot")]
    assert drawn == list(_FIGURES)
    assert page.locator(".df-table").count() >= len(_FIGURES)
    titles = page.locator(".gtitle").all_text_contents()
    assert titles and all(title.endswith("?") for title in titles)
    assert "result=newest" in page.url and "by=category" in page.url
    assert "Block size 4 is fastest" in page.inner_text("#best-size")


_FIGURES = ("survival", "groups", "places", "entropy", "distribution", "whatif", "speeds", "costs")


def test_a_link_opens_cold_with_result_comparison_and_grouping(visit):
    tab = shown(visit, "?result=run-1/step_1&with=newest&by=language&gamma=2")
    page = tab.page
    assert "run-1/step_1" in page.inner_text(".df-accept")
    page.wait_for_selector("#pairs .js-plotly-plot")
    assert f"Over {len(PROMPTS)} shared prompts" in page.inner_text("#compared")
    page.wait_for_function("document.querySelector('#groups').textContent.includes('German')")
    address = page.url
    tab.reload()
    page.wait_for_selector("#pairs .js-plotly-plot")
    page.wait_for_function("address => location.href === address", arg=address)


def test_a_link_to_a_result_that_is_gone_says_so(visit):
    page = visit("acceptance?result=gone").page
    page.wait_for_selector("text=There is no result 'gone'")


def test_grouping_and_gamma_change_their_figure_alone(visit):
    page = shown(visit).page
    lead = page.inner_html("#lead")
    page.click("#group label:has-text('language')")
    page.wait_for_function("document.querySelector('#groups').textContent.includes('Which language suits')")
    page.wait_for_function("location.search.includes('by=language')")
    assert page.inner_html("#lead") == lead


def test_a_result_that_is_chosen_brings_the_gamma_of_its_training(visit, runs):
    (runs / "run-1" / "config.yaml").write_text("draft:\n  block_size: 4\nblocks:\n  gamma: 1.5\n")
    (runs / "run-1" / "status.json").write_text('{"state": "done"}')
    page = shown(visit, "?result=newest").page
    page.wait_for_function("document.querySelector('#survival').textContent.includes('weight at gamma')")
    page.click("#result input")
    page.click("[role=option]:has-text('run-1/step_1')")
    page.wait_for_function("document.querySelector('#survival').textContent.includes('training (gamma 1.5)')")
    page.wait_for_function("location.search.includes('gamma=1.5')")


def test_what_if_follows_its_sliders_by_keyboard(visit):
    page = shown(visit).page
    before = page.inner_text("#whatif-answer .df-big")
    page.focus("#whatif-tau input[type=range]")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => document.querySelector('#whatif-answer .df-big').innerText !== before", arg=before
    )


def test_an_evaluation_is_started_followed_and_its_result_opened(visit):
    page = shown(visit).page
    page.click("#eval-sets label:has-text('examples')")  # off
    page.click("#eval-sets label:has-text('mine')")
    page.fill("#eval-tokens input", "4")
    page.press("#eval-tokens input", "Tab")
    page.click("#evaluate")
    page.wait_for_selector(".df-evaluations .df-job")
    page.set_default_timeout(240_000)
    page.click(".df-evaluations a.df-job-name")
    page.wait_for_selector(".df-accept")
    page.wait_for_function("document.querySelector('.df-accept').textContent.includes('run-1/step_0000002')")


def test_block_size_and_temperature_of_an_evaluation_are_chosen_on_the_page(visit, runs):
    page = shown(visit).page
    page.click("#eval-more button")
    for field, text in (("limit", "0"), ("tokens", "4"), ("block-size", "2"), ("temperature", "0.5")):
        page.fill(f"#eval-{field} input", text)
        page.press(f"#eval-{field} input", "Tab")
    before = {job.name for job in Jobs(runs).list()}
    page.click("#evaluate")
    until(lambda: len(Jobs(runs).list()) > len(before), 60)
    (job,) = (job for job in Jobs(runs).list() if job.name not in before)
    words = " ".join(job.command)
    assert "--block-size 2 --temperature 0.5" in words and "--limit" not in words


def test_an_emptied_number_is_asked_for_and_does_not_mean_all(visit):
    page = shown(visit).page
    page.fill("#eval-limit input", "")
    page.press("#eval-limit input", "Tab")
    page.click("#evaluate")
    page.wait_for_selector("text=is empty: give a number")


def test_nothing_chosen_is_answered_with_a_sentence(visit):
    page = shown(visit).page
    page.click("#eval-sets label:has-text('examples')")
    page.click("#evaluate")
    page.wait_for_selector("text=No prompt set is chosen")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(visit, scheme):
    tab = shown(visit, "?result=newest&with=run-1/step_1", width=360, scheme=scheme)
    content, window = tab.widths()
    assert content <= window == 360
