"""The workbench as one Gradio app: its pages, their URLs and its look."""

import os

# Before gradio is imported: no telemetry, and nothing that asks another host.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from workbench.bench import Bench
from workbench.components import top_bar
from workbench.machine import here
from workbench.pages import anatomy, decode

PAGES = {"Decode": "/", "Anatomy": "/anatomy"}


def build_app(bench: Bench) -> gr.Blocks:
    """All pages. No model is loaded: the first page that needs one loads it."""
    machine = f"{bench.target_name} · {here(bench.device)}"
    with gr.Blocks(title="DFlash Workbench", analytics_enabled=False, fill_width=True) as demo:
        top_bar("Decode", PAGES, machine)
        decode.build(bench, demo)
    with demo.route("Anatomy", PAGES["Anatomy"]):
        top_bar("Anatomy", PAGES, machine)
        anatomy.build(bench, demo)
    return demo
