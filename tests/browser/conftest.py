"""A real browser on a real server: any console error and any request that leaves the machine fails the test."""

import os
import shutil
from urllib.parse import urlsplit

import pytest

playwright_api = pytest.importorskip("playwright.sync_api")

from workbench_server import PATIENCE, running_workbench, save_tiny_draft

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
]


@pytest.fixture(scope="session")
def workbench(tiny_target, tiny_target_folder, tmp_path_factory) -> str:
    """Address of a workbench on the tiny target."""
    folder = tmp_path_factory.mktemp("workbench-browser")
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(folder / "runs")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    """One browser for each file: Playwright's event loop does not run on beside the tests of the files behind."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing: install Debian's package `chromium`.")
        pytest.skip("Chromium is not installed (Debian's package `chromium`).")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """One tab. `complaints` collects console errors and requests to other hosts."""

    def __init__(self, browser, address: str, width: int, scheme: str) -> None:
        self.address = address
        self.complaints: list[str] = []
        # Reduced motion shows results at once instead of replaying them.
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000 * PATIENCE)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("request", self._request)

    def open(self, path: str = "") -> "Visit":
        self.page.goto(self.address + path)
        self.page.wait_for_selector(".df-bar-top")
        if not path and self.page.query_selector(".df-race"):
            # The recorded race is drawn once the page's scripts run: what is typed before they do is lost.
            self.page.wait_for_selector(".df-race[data-recorded=true]")
        return self

    def reload(self) -> "Visit":
        """Load the page again; that the page which goes away cuts its own connections is no complaint."""
        before = len(self.complaints)
        self.page.reload()
        cut = ("AbortError", "Connection errored out")
        self.complaints[before:] = [text for text in self.complaints[before:] if not any(word in text for word in cut)]
        return self

    def decode(self, prompt: str = "Say something.") -> "Visit":
        """Fill in a prompt, press Decode and wait for the end."""
        before = self.page.get_attribute(".df-race", "data-race")
        self.page.fill("#prompt textarea", prompt)
        self.page.click("#decode")
        self.page.wait_for_function("id => document.querySelector('.df-race').dataset.race !== (id ?? undefined)", arg=before)
        self.wait_for_phase("done", "error")
        return self

    def wait_for_phase(self, *phases: str) -> None:
        """Wait until a race that was run here, not the recorded one, has come to one of the phases."""
        self.page.wait_for_function(
            """phases => {
              const race = document.querySelector('.df-race')?.dataset;
              return race && race.recorded === 'false' && phases.includes(race.phase);
            }""",
            arg=list(phases),
        )

    def widths(self) -> tuple[int, int]:
        """Width of the page's content and of the window, in CSS pixels."""
        return tuple(self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]"))

    def _console(self, message) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text}")

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.complaints.append(f"request to {request.url}")


@pytest.fixture
def visit_at(chromium):
    """Opens tabs: `visit_at(address, path, width=..., scheme=...)`; what they complained about fails the test."""
    opened: list[Visit] = []

    def start(address: str, path: str = "", *, width: int = 1440, scheme: str = "light") -> Visit:
        opened.append(Visit(chromium, address, width, scheme))
        return opened[-1].open(path)

    yield start
    for tab in opened:
        tab.context.close()
    assert [complaint for tab in opened for complaint in tab.complaints] == []


@pytest.fixture
def visit(visit_at, workbench):
    """The same on the session's workbench: `visit(path, width=..., scheme=...)`."""

    def start(path: str = "", **window) -> Visit:
        return visit_at(workbench, path, **window)

    return start
