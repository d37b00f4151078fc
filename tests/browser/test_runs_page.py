"""The Runs page as a person uses it, on run folders that change while it is looked at."""

import csv
import io
import json
import shutil
from functools import partial

import pytest
import waiting
from runs_folders import write_metrics, write_run
from workbench_server import running_workbench, save_tiny_draft

from workbench.run_notes import read_notes

until = partial(waiting.until, seconds=15.0)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs_workbench(tiny_target, tiny_target_folder, tmp_path_factory):
    """A workbench whose runs folder the tests write to; yields its address and that folder."""
    folder = tmp_path_factory.mktemp("workbench-runs")
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(folder / "runs")) as address:
        yield address, folder / "runs"


@pytest.fixture
def root(runs_workbench):
    folder = runs_workbench[1]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.fixture
def look(visit_at, runs_workbench):
    """Opens the page on what the test has written."""
    return lambda query="", **options: visit_at(runs_workbench[0], f"runs{query}", **options).page


def curves_of(page, *names):
    page.wait_for_selector(f".df-curves[data-ready='{','.join(names)}']")


def names_in(page) -> list[str]:
    return page.locator(".df-runs-table tbody .df-run-name").all_text_contents()


def steps_in_view(page) -> tuple[float, float]:
    """First and last step of the loss chart's crosshair, moved by keys."""
    plot, where = page.locator("[data-panel=loss] .df-plot"), "[data-panel=loss] .df-curve-where"
    ends = []
    for key in ("Home", "End"):
        plot.press(key)
        ends.append(float(page.text_content(where).removeprefix("step ").replace(",", "")))
    return ends[0], ends[1]


def test_an_empty_folder_says_how_to_begin(root, look):
    page = look()
    page.wait_for_selector(".df-runs-none:visible")
    assert "no run here yet" in page.text_content(".df-runs-none")


def test_the_table_says_how_each_run_does_and_the_newest_is_opened(root, look):
    write_run(root, "older", age=100)
    write_run(root, "newer", steps=30, state="stopped", age=50)
    page = look()
    curves_of(page, "newer")
    assert names_in(page) == ["newer", "older"]
    row = page.locator(".df-runs-table tbody tr").first
    cells = row.locator("td").all_text_contents()
    assert "stopped" in cells[1] and "30" in cells[2]
    assert page.get_attribute(".df-run-name >> nth=0", "aria-pressed") == "true"
    assert page.url.endswith("?run=newer")
    questions = page.locator(".df-curve h3").all_text_contents()
    assert "Is it still learning?" in questions and "How many tokens per forward?" in questions


def test_the_table_is_sorted_and_filtered_by_keyboard_and_mouse(root, look):
    for place, name in enumerate(["b", "c", "a"]):
        write_run(root, name, steps=20 + 10 * place, age=10 + place)
    page = look()
    page.wait_for_selector(".df-run-name")
    page.click(".df-runs-table th[data-column=name] button")
    assert names_in(page) == ["a", "b", "c"]
    assert page.get_attribute("th[data-column=name]", "aria-sort") == "ascending"
    page.focus("th[data-column=name] button")
    page.keyboard.press("Enter")
    assert names_in(page) == ["c", "b", "a"]
    page.fill(".df-runs-filter", "fin b")
    assert names_in(page) == ["b"]
    assert "1 of 3 runs" in page.text_content(".df-runs-count")


def test_a_growing_run_is_followed_and_zoom_and_crosshair_stay(root, look):
    run = write_run(root, "live", steps=100, state="running")
    page = look()
    curves_of(page, "live")
    box = page.locator("[data-panel=loss] .df-plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 80, steps=4)
    page.mouse.up()
    page.wait_for_function("new URL(location.href).searchParams.has('from')")
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 80)
    before = page.text_content("[data-panel=loss] .df-curve-where")
    url = page.url
    write_metrics(run, 160, first=101)
    page.wait_for_function("document.querySelector('.df-run-key small').textContent.startsWith('202 ')")
    assert page.text_content("[data-panel=loss] .df-curve-where") == before != "newest"
    assert page.locator("[data-panel=loss] .cross line").count() == 1
    assert page.url == url
    page.click(".df-whole")
    assert steps_in_view(page) == (1, 160)


def test_the_address_alone_restores_runs_and_zoom(root, look):
    write_run(root, "one", steps=100)
    write_run(root, "two", steps=100, age=9)
    page = look("?run=two&run=one&from=20&to=40")
    curves_of(page, "two", "one")
    page.wait_for_timeout(300)
    first, last = steps_in_view(page)
    assert 20 <= first <= 21 and 39 <= last <= 40
    assert page.locator(".df-runs-table tbody tr.chosen").count() == 2
    assert page.text_content(".df-run-of") == "two"


def test_a_chart_is_read_and_zoomed_by_keyboard_alone(root, look):
    write_run(root, "one", steps=100)
    page = look()
    curves_of(page, "one")
    plot = page.locator("[data-panel=loss] .df-plot")
    plot.press("Home")
    assert page.text_content("[data-panel=loss] .df-curve-where") == "step 1"
    plot.press("ArrowRight")
    assert page.text_content("[data-panel=loss] .df-curve-where") == "step 2"
    assert page.text_content("[data-panel=tau] .df-curve-where") == "step 2"  # one crosshair for all charts
    assert "step 2" in plot.get_attribute("aria-label")
    plot.press("+")
    until(lambda: steps_in_view(page)[1] < 60)
    plot.press("0")
    until(lambda: steps_in_view(page) == (1, 100))


def test_the_table_behind_a_chart_has_its_points(root, look):
    write_run(root, "one", steps=20)
    page = look()
    curves_of(page, "one")
    page.click("[data-panel=loss] summary")
    rows = page.locator("[data-panel=loss] tbody tr")
    until(lambda: rows.count() == 20)  # it is filled when it is opened
    assert rows.nth(1).locator("td").all_text_contents()[0] == "2"
    assert page.locator("[data-panel=loss] thead th").all_text_contents() == ["step", "training", "held out"]


def test_runs_over_one_another_show_what_differs_and_can_be_hidden(root, look):
    write_run(root, "one")
    write_run(root, "two", age=9, optimizer={"lr": 0.002})
    page = look()
    curves_of(page, "one")
    page.check("input[aria-label='Show two']")
    curves_of(page, "one", "two")
    rows = page.locator(".df-compare tbody tr")
    page.wait_for_selector(".df-compare tbody tr")
    assert rows.locator("td").all_text_contents() == ["optimizer.lr", "0.0006", "0.002"]
    lines = page.locator("[data-panel=loss] .line.line").count()
    page.click(".df-run-key:has-text('two')")
    assert page.locator("[data-panel=loss] .df-plot .line").count() < lines
    assert page.locator("[data-panel=loss] .df-curve-entry:has-text('two')").count() == 0
    page.uncheck("input[aria-label='Show two']")
    page.wait_for_selector(".df-compare", state="hidden")


def test_two_tabs_keep_their_own_runs(root, look):
    write_run(root, "one")
    write_run(root, "two", age=9)
    first, second = look("?run=one"), look("?run=two")
    curves_of(first, "one")
    curves_of(second, "two")
    first.wait_for_timeout(2_500)  # another round of questions from both
    assert first.text_content(".df-run-of") == "one" and second.text_content(".df-run-of") == "two"
    assert first.locator(".df-run-key").all_text_contents()[0].startswith("one")


def test_notes_and_tags_are_kept_in_the_run_folder(root, look):
    run = write_run(root, "one")
    page = look()
    page.wait_for_selector("[data-run=one]")
    page.fill(".df-notes textarea", "gamma too <b>low</b>")
    page.fill(".df-notes-tags", "baseline, 2026")
    page.click(".df-save")
    page.wait_for_function("document.querySelector('.df-notes-state').textContent === 'Saved.'")
    assert read_notes(run.path).text == "gamma too <b>low</b>"
    assert read_notes(run.path).tags == ("baseline", "2026")
    page.wait_for_selector(".df-tag:has-text('baseline')")
    page.reload()
    page.wait_for_function("document.querySelector('.df-notes textarea')?.value.includes('gamma')")
    assert page.locator(".df-notes b").count() == 0


def test_notes_of_another_tab_are_not_overwritten_unseen(root, look):
    write_run(root, "one")
    first, second = look(), look()
    for page, text in ((first, "mine"), (second, "yours")):
        page.wait_for_selector("[data-run=one]")
        page.fill(".df-notes textarea", text)
    first.click(".df-save")
    first.wait_for_function("document.querySelector('.df-notes-state').textContent === 'Saved.'")
    second.wait_for_timeout(2_500)  # it has asked what is new meanwhile: its own text is older still
    second.click(".df-save")
    second.wait_for_function("document.querySelector('.df-notes-state').textContent.includes('changed elsewhere')")
    assert second.input_value(".df-notes textarea") == "yours"


def test_the_log_is_filtered_and_a_line_of_ten_megabytes_is_cut(root, look):
    run = write_run(root, "one")
    with open(run.path / "log.txt", "a") as file:
        file.write("needle <i>" + "x" * 10_000_000 + "\nWARNING the last line\n")
    page = look()
    page.wait_for_function("document.querySelector('.df-log-lines')?.textContent.includes('the last line')")
    assert len(page.text_content(".df-log-lines")) < 10_000
    assert "last 8 of 10 MB" in page.text_content(".df-log-count")
    page.fill(".df-log-filter", "warning")
    page.wait_for_function("document.querySelector('.df-log-lines').textContent === 'WARNING the last line'")
    page.fill(".df-log-filter", "not there")
    page.wait_for_function("document.querySelector('.df-log-lines').textContent === 'No line holds that.'")


def test_damage_in_a_run_folder_is_a_sentence(root, look):
    run = write_run(root, "one")
    (run.path / "config.yaml").write_text("a: [1\n")
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 41, "lo\nnonsense\n{"step": 42')
    checkpoint = run.checkpoints / "step_0000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer.json").write_text("not json")
    page = look()
    curves_of(page, "one")
    page.wait_for_selector(".df-checkpoints tbody tr")
    assert "config.yaml could not be read" in page.text_content(".df-run-message")
    assert "Damaged (trainer.json cannot be read)" in page.text_content(".df-checkpoints")


def test_a_run_deleted_while_it_is_looked_at_is_a_sentence(root, look):
    write_run(root, "one")
    run = write_run(root, "two", age=9)
    page = look("?run=two")
    curves_of(page, "two")
    shutil.rmtree(run.path)
    page.wait_for_selector(".df-curves .df-trouble:has-text(\"There is no run 'two'\")")
    page.click(".df-run-name:has-text('one')")
    curves_of(page, "one")
    assert page.locator(".df-curves .df-trouble").is_hidden()


@pytest.mark.parametrize("name", ["..%2F..%2Fetc", "%3Cscript%3Ealert(1)%3C%2Fscript%3E", "nothing"])
def test_names_in_the_address_are_checked(root, look, name):
    write_run(root, "one")
    page = look(f"?run={name}")
    page.wait_for_selector(".df-curves .df-trouble:visible")
    assert page.text_content(".df-curves .df-trouble").startswith(("Run name", "There is no run"))
    page.wait_for_timeout(500)
    assert page.locator(".df-curves-empty").is_hidden() and page.locator(".df-run-head").is_hidden()


def test_everything_can_be_taken_away(root, look, tmp_path, chromium):
    write_run(root, "one", steps=20)
    write_run(root, "two", steps=20, age=9, optimizer={"lr": 0.002})
    page = look("?run=one&run=two")
    curves_of(page, "one", "two")
    page.wait_for_selector("[data-run=one]")
    files = {}
    for kind in ("csv", "png", "html"):
        with page.expect_download() as download:
            page.click(f".df-{kind}")
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["run"] for row in rows if row["kind"] == "train"] == ["one"] * 20 + ["two"] * 20
    first = json.loads((root / "one" / "metrics.jsonl").read_text().partition("\n")[0])
    assert float(rows[0]["slot_accuracy/2"]) == pytest.approx(first["slot_accuracy"][1])
    assert files["png"].read_bytes().startswith(b"\x89PNG") and files["png"].stat().st_size > 20_000
    context = chromium.new_context()
    exported, requests, errors = context.new_page(), [], []
    exported.set_default_timeout(120_000)
    exported.on("request", lambda request: requests.append(request.url))
    exported.on("pageerror", lambda error: errors.append(str(error)))
    exported.goto(files["html"].as_uri())
    exported.wait_for_selector(".js-plotly-plot .gtitle")
    assert exported.locator(".js-plotly-plot").count() >= 6
    assert "optimizer.lr" in exported.text_content("body")
    assert errors == [] and [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []
    context.close()
