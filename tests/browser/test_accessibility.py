"""What holds on every page of the bar, on a workbench that has something to show: axe-core finds nothing serious, a
phone needs no scrolling sideways. That no request leaves the machine and no error is logged, every visit checks."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from runs_folders import write_run
from workbench_server import running_workbench, save_tiny_draft

from workbench.app import PAGES

pytestmark = pytest.mark.browser

# What tells that a page shows its contents; a page that is not listed is judged as soon as its bar is there.
READY = {
    "/": ".df-race",
    "/train": ".df-train, .df-panel",
    "/runs": "[data-panel=loss] .df-plot .line",
    "/acceptance": ".df-panel",
    "/anatomy": ".df-strip .df-cell.anchor",
}
_GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def filled_workbench(tiny_target, tiny_target_folder, tmp_path_factory) -> str:
    """Address of a workbench with runs of all kinds."""
    folder = tmp_path_factory.mktemp("workbench-access")
    runs = folder / "runs"
    write_run(runs, "finished-one", age=50)
    write_run(runs, "stopped-one", state="stopped", age=40)
    write_run(runs, "failed-one", state="failed", age=30)
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(runs)) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", [page.path for page in PAGES])
def test_axe_finds_nothing_serious_and_a_phone_needs_no_scrolling_sideways(visit_at, filled_workbench, path, scheme):
    tab = visit_at(filled_workbench, path.lstrip("/"), scheme=scheme)
    tab.page.wait_for_selector(READY.get(path, ".df-bar-top"))
    tab.page.wait_for_timeout(1_000)  # figures settle
    found = grave_violations(tab.page)
    tab.page.set_viewport_size({"width": 360, "height": 780})
    tab.page.wait_for_timeout(1_000)
    assert "\n".join(found + grave_violations(tab.page)) == ""
    content, window = tab.widths()
    assert content <= window == 360


def grave_violations(page) -> list[str]:
    """Serious and critical findings of axe-core, one line each: rule, element, what to do."""
    return [
        f"{found['impact']} {found['id']}: {node['target']} {node['failureSummary']}"
        for found in Axe().run(page).response["violations"]
        if found["impact"] in _GRAVE
        for node in found["nodes"]
    ]


def test_every_link_of_the_bar_is_seen_on_a_phone(visit_at, filled_workbench):
    page = visit_at(filled_workbench, "runs", width=360).page
    links = page.locator(".df-bar-top nav a")
    assert links.all_text_contents() == [page.name for page in PAGES]
    for place in range(links.count()):
        box = links.nth(place).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        assert box["height"] >= 24  # WCAG's smallest target


def test_a_violation_would_be_found(visit_at, filled_workbench):
    page = visit_at(filled_workbench, "runs").page
    page.evaluate("document.querySelector('.df-bar-top').append(document.createElement('button'))")
    assert any("button-name" in line for line in grave_violations(page))
