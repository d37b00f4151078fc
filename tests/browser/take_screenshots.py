"""Take the README's screenshots: `python tests/browser/take_screenshots.py` (record a race first, on a quiet machine).

Every page in wide and narrow, dark and light: Decode shows the recorded race at its end, Anatomy the built-in
conversation, Runs and Acceptance what the folder given as --runs holds.
"""

import argparse
import shutil
import socket
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dflash.embedded import EMBEDDED_NAME
from workbench.launch import serve

# Each page's address, and what is there once it has drawn itself.
PAGES = {
    "decode": ("", ".df-row"),
    "train": ("train", "#memory .js-plotly-plot .gtitle"),
    "runs": ("runs", ".df-runs-table tbody tr"),
    "acceptance": ("acceptance", ".df-rest .js-plotly-plot .gtitle"),
    "anatomy": ("anatomy", "#tiles .js-plotly-plot .gtitle"),
}
PATIENCE = 300_000  # milliseconds
WINDOWS = {"": (1440, 1000), "-phone": (360, 780)}  # width and height in CSS pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", default=EMBEDDED_NAME)
    parser.add_argument("--draft", default="", help="draft folder; empty takes the shipped one")
    parser.add_argument("--runs", default="runs", help="folder of training runs to show")
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=list(PAGES), help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    served = argparse.Namespace(
        host="127.0.0.1",
        port=port,
        browser=False,
        runs=options.runs,
        target=options.target,
        draft=options.draft,
        device="auto",
        dtype="bfloat16",
    )
    demo = serve(served, None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for kind, (width, height) in WINDOWS.items():
            for scheme in ("light", "dark"):
                for name in options.pages:
                    path, ready = PAGES[name]
                    context = browser.new_context(
                        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                    )
                    page = context.new_page()
                    page.goto(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE)
                    page.wait_for_selector(ready, timeout=PATIENCE)
                    page.wait_for_timeout(3_000)  # figures settle in their boxes
                    page.screenshot(path=options.out / f"{name}{kind}-{scheme}.png")
                    context.close()
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
