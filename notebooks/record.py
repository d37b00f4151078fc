"""Run notebooks on their recorded results and keep what they show: `python notebooks/record.py 02 05`.

Each Plotly figure gets a picture beside it, drawn by Chromium from the very same data, for places that show no live
figures (GitHub, nbconvert). Nothing is fetched from elsewhere.
"""

import argparse
import os
from pathlib import Path

import nbformat
import plotly.offline
from nbclient import NotebookClient
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
_FIGURE = "application/vnd.plotly.v1+json"
_SECONDS = 600  # for a cell, a kernel's start or a picture, on a busy machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="+", help="of the notebooks: 01 to 05")
    args = parser.parse_args()
    os.environ["DFLASH_NOTEBOOK_SETTING"] = "recorded"
    paths = [path for number in args.numbers for path in sorted(HERE.glob(f"{number}_*.ipynb"))]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"], timeout=1000 * _SECONDS
        )
        page = browser.new_page()
        page.set_default_timeout(1000 * _SECONDS)
        page.set_content(f"<script>{plotly.offline.get_plotlyjs()}</script>")
        for path in paths:
            record(path, page)
            print(path.name)
        browser.close()


def record(path: Path, page: Page) -> None:
    """Execute a notebook in place."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=_SECONDS, startup_timeout=_SECONDS, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, different every time
        for output in cell.get("outputs", ()):
            if _FIGURE in output.get("data", {}):
                output["data"]["image/png"] = picture(page, output["data"][_FIGURE])
    notebook.metadata["language_info"] = {"name": "python"}
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def picture(page: Page, figure: dict) -> str:
    """The figure as PNG, base64."""
    size = {name: figure["layout"][name] for name in ("width", "height")}
    address = page.evaluate(
        "([figure, size]) => Plotly.toImage(figure, {format: 'png', scale: 2, ...size})", [figure, size]
    )
    return address.partition(",")[2]


if __name__ == "__main__":
    main()
