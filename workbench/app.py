"""The workbench as one Gradio app: its pages, their URLs and its look."""

import os
from collections.abc import Callable
from dataclasses import dataclass

# Before gradio is imported: no telemetry, and nothing that asks another host.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from workbench.bench import Bench
from workbench.components import top_bar
from workbench.machine import here
from workbench.pages import acceptance, anatomy, decode, runs, train


_CACHE = (3600, 86400)  # Gradio's copies of what comes and goes: every hour those older than a day are deleted


@dataclass(frozen=True)
class Page:
    """A page: its name in the bar, its address, and what lays it out and wires its events."""

    name: str
    path: str
    build: Callable[[Bench, gr.Blocks], None]


# In the order of the bar. The first one is what the address without a path shows.
PAGES = (
    Page("Decode", "/", decode.build),
    Page("Train", "/train", train.build),
    Page("Runs", "/runs", runs.build),
    Page("Acceptance", "/acceptance", acceptance.build),
    Page("Anatomy", "/anatomy", anatomy.build),
)


def build_app(bench: Bench) -> gr.Blocks:
    """All pages. No model is loaded: the first page that needs one loads it."""
    machine = f"{bench.target_name} · {here(bench.device)}"
    links = {page.name: page.path for page in PAGES}
    demo = gr.Blocks(title="DFlash Workbench", analytics_enabled=False, fill_width=True, delete_cache=_CACHE)
    for page in PAGES:
        with demo if page.path == "/" else demo.route(page.name, page.path):
            top_bar(page.name, links, machine)
            page.build(bench, demo)
    return demo
