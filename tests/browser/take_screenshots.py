"""Take the README's screenshots: `python tests/browser/take_screenshots.py` (record a race first, on a quiet machine).

Decode shows the recorded race at its end, Anatomy the built-in conversation; both in wide and narrow, dark and light.
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

PAGES = {"decode": ("", ".df-row"), "anatomy": ("anatomy", "#tiles .js-plotly-plot .gtitle")}
WINDOWS = {"": (1440, 1000), "-phone": (360, 780)}  # width and height in CSS pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", default=EMBEDDED_NAME)
    parser.add_argument("--draft", default="", help="draft folder; empty takes the shipped one")
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
        runs="runs",
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
                for name, (path, ready) in PAGES.items():
                    context = browser.new_context(
                        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                    )
                    page = context.new_page()
                    page.goto(f"http://127.0.0.1:{port}/{path}")
                    page.wait_for_selector(ready, timeout=120_000)
                    page.wait_for_timeout(1500)  # figures settle in their boxes
                    page.screenshot(path=options.out / f"{name}{kind}-{scheme}.png")
                    context.close()
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
