"""Fifty runs, one of them with 100,000 recorded steps: pages open and answer as on an empty workbench.

Measured by the browser's own clocks: from the start of the navigation until a page's first content is painted, and
from a key or a click until the next frame (Event Timing). All numbers are printed; run with `-rP` or `-s` to see them.

The bounds of the promise are 1.5 s and 0.2 s on a quiet machine with two cores. Server, browser and test share those
cores, and in CI nothing else does; where more processes want them than there are, each gets its share only, so the
bounds grow with the load. The ratio to an empty workbench holds at any load, as both are measured side by side.
"""

import json
import os

import pytest
from runs_folders import write_metrics, write_run
from workbench_server import running_workbench, save_tiny_draft

from workbench.app import PAGES

pytestmark = pytest.mark.browser

RUNS, LINES = 50, 100_000
FIRST_PAINT, INTERACTION = 1_500.0, 200.0  # ms
ROUNDS = 3
# A page may take this much longer than on an empty workbench, and this many ms beside: of one visit's own scatter.
RATIO, SCATTER = 2.0, 400.0
CONTENT = {
    "/": ".df-race",
    "/train": ".df-panel",
    "/runs": ".df-runs-table tbody tr, .df-runs-none:not([hidden])",
    "/acceptance": ".df-panel",
    "/anatomy": ".df-panel",
}
# Notes the first frame in which something that matches is laid out.
_WATCH = """(selector) => {
  const look = () => {
    const seen = [...document.querySelectorAll(selector)].some((node) => node.getClientRects().length);
    if (seen) requestAnimationFrame(() => { window.firstContent = performance.now(); });
    else requestAnimationFrame(look);
  };
  look();
  window.slowest = {};
  new PerformanceObserver((list) => {
    for (const { name, duration } of list.getEntries()) {
      window.slowest[name] = Math.max(window.slowest[name] || 0, duration);
    }
  }).observe({ type: "event", durationThreshold: 16, buffered: true });
}"""


def patience() -> float:
    """How much longer things take on this machine now: processes that want a core, per core; at least one."""
    return max(1.0, os.getloadavg()[0] / os.cpu_count())


@pytest.fixture(scope="module")
def workbenches(tiny_target, tiny_target_folder, tmp_path_factory):
    """Addresses of an empty workbench and of a full one."""
    folder = tmp_path_factory.mktemp("workbench-scale")
    for place in range(RUNS - 1):
        write_run(folder / "full", f"run-{place:02d}", steps=40, age=100 + place)
    big = write_run(folder / "full", "big", steps=1, age=50)
    write_metrics(big, LINES, first=2)
    big.set_status("running", step=LINES, max_steps=2 * LINES)
    (folder / "empty").mkdir()
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(folder / "empty")) as empty:
        with running_workbench(tiny_target_folder, draft, str(folder / "full")) as full:
            yield empty, full


@pytest.fixture
def opened(chromium):
    """Opens a page in a browser context without a cache and watches its clocks; yields `open(address, path)`."""
    contexts = []

    def start(address: str, path: str):
        contexts.append(chromium.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce"))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        selector = CONTENT.get(path.partition("?")[0], ".df-bar-top")
        page.add_init_script(f"({_WATCH})({json.dumps(selector)})")
        page.goto(address + path.lstrip("/"))
        page.wait_for_function("window.firstContent")
        return page

    yield start
    for context in contexts:
        context.close()  # closing twice does nothing


@pytest.mark.parametrize("path", [page.path for page in PAGES])
def test_every_page_opens_as_fast_as_on_an_empty_workbench(opened, workbenches, path):
    empty, full = [], []
    for _ in range(ROUNDS):  # in turns, so that both meet the same load
        for address, times in zip(workbenches, (empty, full), strict=True):
            page = opened(address, path)
            times.append(page.evaluate("window.firstContent"))
            page.context.close()
    best_empty, best_full = min(empty), min(full)
    ratio = best_full / best_empty
    print(f"{path}: first content after {best_full:.0f} ms, {best_empty:.0f} ms when empty: {ratio:.2f} x")
    assert best_full <= RATIO * best_empty + SCATTER
    assert best_full <= FIRST_PAINT * patience()


def interactions(page, work) -> dict[str, float]:
    """Milliseconds from an event to the next frame, the slowest of its kind, while a person does `work` on the page."""
    page.wait_for_timeout(500)  # a person looks before acting: opening is measured by itself
    page.evaluate("window.slowest = {}")
    work(page)
    page.wait_for_timeout(500)
    return page.evaluate("window.slowest")


def work_on_runs(page) -> None:
    page.click(".df-runs-table th[data-column=name] button")
    page.fill(".df-runs-filter", "")
    page.locator(".df-runs-filter").press_sequentially("run-1", delay=30)
    page.fill(".df-runs-filter", "")
    plot = page.locator("[data-panel=loss] .df-plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 240, box["y"] + 60, steps=6)
    page.mouse.up()
    for key in ("Home", "ArrowRight", "ArrowRight", "+", "-", "0"):
        plot.press(key)
    page.select_option(".df-factor", "0.9")


def test_the_runs_page_answers_at_once_with_a_hundred_thousand_steps_in_view(opened, workbenches):
    page = opened(workbenches[1], "/runs?run=big&run=run-00")
    page.wait_for_selector(".df-curves[data-ready='big,run-00']")
    assert page.text_content(".df-run-key small >> nth=0").startswith("100,0")
    slowest = interactions(page, work_on_runs)
    small = opened(workbenches[1], "/runs?run=run-01&run=run-02")
    small.wait_for_selector(".df-curves[data-ready='run-01,run-02']")
    beside = interactions(small, work_on_runs)
    for name in sorted(slowest):
        print(f"{name}: {slowest[name]:.0f} ms, {beside.get(name, 0):.0f} ms with forty steps")
    # The browser reports events from 16 ms on: a page that is faster has none.
    assert max([*slowest.values(), 16]) <= INTERACTION * patience()
    assert max([*slowest.values(), 16]) <= 3 * max([*beside.values(), 16]) + 100


def work_on_decode(page) -> None:
    page.locator("#prompt textarea").press_sequentially(" And why?", delay=30)
    page.focus(".df-row")
    for key in ("ArrowDown", "PageDown", "End", "Home"):
        page.keyboard.press(key)
    page.focus(".df-lane[data-lane=draft] .df-text")
    page.keyboard.press("Space")
    page.focus(".df-seek")
    for key in ("Home", "ArrowRight", "End"):
        page.keyboard.press(key)
    page.click(".df-timeline .df-table summary")


def work_on_anatomy(page) -> None:
    page.wait_for_selector("#tiles .js-plotly-plot .gtitle")
    page.focus(".df-strip")
    for key in ("ArrowRight", "End", "Home"):
        page.keyboard.press(key)
    page.locator(".df-strip .df-cell.anchor").nth(2).click()
    for pad in (0, 1):
        page.locator(".df-walk-pad").nth(pad).focus()
        for key in ("ArrowRight", "ArrowDown", "End"):
            page.keyboard.press(key)
    page.fill("#anchors input[type=number]", "64")


def work_on_train(page) -> None:
    page.wait_for_selector("#memory .js-plotly-plot .gtitle")  # the plan of the config that it opens with, to its end
    # At the window's edge the browser reports frames late that it drew in time (a trace has one 12 ms after each key).
    page.locator(".df-search").evaluate("box => box.scrollIntoView({ block: 'center' })")
    page.locator(".df-search").press_sequentially("learning", delay=30)
    page.fill(".df-search", "")
    page.locator(".df-run-name").press_sequentially("another", delay=30)


def work_on_acceptance(page) -> None:
    page.wait_for_selector(".js-plotly-plot .gtitle")
    page.click(".df-table summary >> nth=0")
    for key in ("Tab", "Tab", "Tab"):
        page.keyboard.press(key)


WORK = {
    "/": work_on_decode,
    "/train": work_on_train,
    "/acceptance": work_on_acceptance,
    "/anatomy": work_on_anatomy,
}


@pytest.mark.parametrize("path", [page.path for page in PAGES if page.path != "/runs"])  # which is measured above
def test_every_page_answers_at_once_with_fifty_runs(opened, workbenches, path):
    page = opened(workbenches[1], path)
    slowest = interactions(page, WORK[path])
    for name in sorted(slowest):
        print(f"{path}: {name}: {slowest[name]:.0f} ms")
    # The browser reports events from 16 ms on: a page that is faster has none.
    assert max([*slowest.values(), 16]) <= INTERACTION * patience()


def test_a_slow_answer_would_be_seen(opened, workbenches):
    page = opened(workbenches[0], "/runs")
    page.evaluate(
        """document.querySelector('.df-bar-top button').addEventListener('click', () => {
          const until = performance.now() + 150;
          while (performance.now() < until);
        })"""
    )
    page.click(".df-bar-top button")
    page.wait_for_function("window.slowest.click >= 150")


def test_choosing_a_run_in_the_table_draws_its_curves_soon(opened, workbenches):
    """With everything read once, as while a run is followed: question, answer and drawing together."""
    page = opened(workbenches[1], "/runs?run=big")
    page.wait_for_selector(".df-curves[data-ready='big']")
    times = []
    for name in ("run-03", "big", "run-04", "big"):
        times.append(
            page.evaluate(
                """(name) => new Promise((done) => {
                  const began = performance.now();
                  const panel = document.querySelector(".df-curves");
                  const drawn = () => {
                    if (panel.dataset.ready === name) requestAnimationFrame(() => done(performance.now() - began));
                  };
                  new MutationObserver(drawn).observe(panel, { attributes: true });
                  [...document.querySelectorAll(".df-run-name")].find((node) => node.textContent === name).click();
                })""",
                name,
            )
        )
    print("choosing a run: " + ", ".join(f"{time:.0f} ms" for time in times))
    assert min(times[1::2]) <= INTERACTION * patience()
    assert min(times[1::2]) <= 3 * min(times[::2]) + 100
