"""The Anatomy page: one real conversation through template, loss mask, anchors, blocks and attention mask."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from dflash.data.conversations import Conversation, parse_conversation
from dflash.errors import UserError
from workbench.anatomy import TILE, Anatomy, AnatomySettings, cell_view, dissect, summary, token_payload
from workbench.bench import Bench
from workbench.components import packed, panel, table_behind
from workbench.examples import EXAMPLE_CONVERSATIONS
from workbench.figures.mask import mask_cells, mask_tiles

OWN = "Your own (paste or drop a JSONL line)"
_READ = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks and wire it."""
    with gr.Column(elem_classes="df-grid-page"):
        with gr.Column(elem_classes="df-main"):
            tokens = panel("anatomy", elem_id="anatomy")
        with gr.Column(elem_classes="df-side"):
            controls = _controls()
        with gr.Column(elem_classes="df-rest"):
            with gr.Column(elem_classes="df-figure-box"):
                cells = gr.Plot(show_label=False, container=False, elem_id="cells")
                cells_table = gr.HTML(padding=False)
            with gr.Column(elem_classes="df-figure-box"):
                tiles = gr.Plot(show_label=False, container=False, elem_id="tiles")
                tiles_note = gr.HTML(padding=False)
    outputs = [tokens, cells, cells_table, tiles, tiles_note]

    def show(*values) -> list[Any]:
        anatomy, block = _anatomy(bench, *values)
        return _views(anatomy, block)

    def show_block(*values) -> list[Any]:
        anatomy, block = _anatomy(bench, *values)
        return _block_views(anatomy, block)

    inputs = list(controls.values())
    block = controls["block"]
    heavy = [component for name, component in controls.items() if name not in ("block", "line")]
    gr.on([component.change for component in heavy] + [controls["line"].submit, controls["line"].blur], show, inputs, outputs, **_READ)
    block.change(show_block, inputs, outputs[:3], **_READ)
    tokens.select(_chosen_block, None, block, **_READ)
    demo.load(show, inputs, outputs, **_READ)
    _api(bench)


def _chosen_block(event: gr.EventData) -> int:
    return int(event.block)


def _controls() -> dict[str, gr.components.Component]:
    conversation = gr.Dropdown(
        [*EXAMPLE_CONVERSATIONS, OWN], value=list(EXAMPLE_CONVERSATIONS)[-1], label="Conversation", elem_id="conversation"
    )
    line = gr.Textbox(
        label="One JSON line with a messages list",
        placeholder='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
        lines=4,
        max_lines=8,
        visible=False,
        elem_id="line",
    )
    drop = gr.File(label="… or drop a JSONL file (its first line is used)", file_types=[".jsonl", ".json"], height=110, visible=False)
    conversation.change(
        lambda name: [gr.Textbox(visible=name == OWN), gr.File(visible=name == OWN)], conversation, [line, drop], **_READ
    )
    drop.upload(_first_line, drop, line, **_READ).then(None, **_READ, js="() => document.querySelector('#line textarea')?.focus()")
    anchors = gr.Slider(1, 512, 48, step=1, label="Anchor slots (N)", elem_id="anchors", buttons=[])
    size = gr.Slider(2, 32, 8, step=1, label="Block size (K)", elem_id="anatomy_block_size", buttons=[])
    gamma = gr.Slider(0.5, 12, 4, step=0.5, label="Decay gamma (slots)", elem_id="gamma", buttons=[])
    window = gr.Slider(0, 256, 0, step=8, label="Sliding window (tokens, 0 = none)", elem_id="window", buttons=[])
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", min_width=90)
        resample = gr.Button("Resample", elem_id="resample", min_width=100)
    resample.click(lambda number: int(number or 0) + 1, seed, seed, **_READ)
    block = gr.Number(4, label="Chosen block", precision=0, minimum=0, elem_id="block")
    return {
        "conversation": conversation,
        "line": line,
        "anchors": anchors,
        "size": size,
        "gamma": gamma,
        "window": window,
        "seed": seed,
        "block": block,
    }


def _first_line(path: str | None) -> str:
    if not path:
        return ""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        return next((line.strip() for line in file if line.strip()), "")


def _anatomy(
    bench: Bench, name: str, line: str, anchors: int, size: int, gamma: float, window: int, seed: int, block: int
) -> tuple[Anatomy, int]:
    try:
        settings = AnatomySettings(int(anchors), int(size), float(gamma), int(seed or 0), int(window) or None)
        anatomy = dissect(bench.target, _conversation(name, line), settings)
        # A smaller number of anchors may leave the chosen block behind: fall back to the last one.
        return anatomy, min(max(0, int(block or 0)), anatomy.plan.num_anchors - 1)
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _conversation(name: str, line: str) -> Conversation:
    if name in EXAMPLE_CONVERSATIONS:
        return Conversation(name, EXAMPLE_CONVERSATIONS[name])
    if not line.strip():
        raise UserError("No conversation yet: paste one JSON line with a `messages` list, or drop a JSONL file.")
    return parse_conversation(line, "The pasted line")


def _views(anatomy: Anatomy, block: int) -> list[Any]:
    tiles = anatomy.tiles
    figure = mask_tiles(tiles.state.tolist(), tiles.tile, anatomy.plan.sequence_length)
    return [*_block_views(anatomy, block), figure, _tiles_note(anatomy)]


def _block_views(anatomy: Anatomy, block: int) -> list[Any]:
    view = cell_view(anatomy, block)
    figure = mask_cells(view.visible, view.words, view.row_names, view.column_names, view.context_columns)
    rows = [
        [row_name, column_name, "yes" if cell else "no", words]
        for row_name, cells, sentences in zip(view.row_names, view.visible, view.words, strict=True)
        for column_name, cell, words in zip(view.column_names, cells, sentences, strict=True)
    ]
    return [packed(token_payload(anatomy, block)), figure, table_behind("Every cell in words", ["slot", "key", "visible", "why"], rows)]


def _tiles_note(anatomy: Anatomy) -> str:
    tiles = anatomy.tiles
    slots = anatomy.plan.num_anchors * anatomy.plan.block_size
    keys = anatomy.plan.sequence_length + slots
    counts = "".join(
        f'<span><i class="df-tile-key {name}"></i>{name} <b>{tiles.count(state):,}</b></span>'
        for name, state in (("full", 2), ("partial", 1), ("empty", 0))
    )
    words = f"{slots:,} slots × {keys:,} keys = {slots * keys:,} cells in {tiles.state.numel():,} tiles of {TILE}×{TILE}"
    return (
        f'<p class="df-tiles-note">{html.escape(words)}: {counts}<span> — <b>{tiles.skipped:.0%}</b> of the tiles are '
        "never computed.</span></p>"
    )


def _api(bench: Bench) -> None:
    def anatomy(
        conversation: str = "",
        num_anchors: int = 48,
        block_size: int = 8,
        gamma: float = 4.0,
        seed: int = 0,
        window: int = 0,
        block: int = 0,
    ) -> dict:
        """Take one conversation (a JSON line; empty takes a built-in one) through the training pipeline."""
        try:
            name = OWN if conversation.strip() else next(iter(EXAMPLE_CONVERSATIONS))
            settings = AnatomySettings(num_anchors, block_size, gamma, seed, window or None)
            view = dissect(bench.target, _conversation(name, conversation), settings)
            return summary(view, view.check_block(block))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    gr.api(anatomy, api_name="anatomy", concurrency_limit=None)
