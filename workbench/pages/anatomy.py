"""The Anatomy page: real conversations through template, loss mask, anchors, blocks and attention mask."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from workbench.anatomy import (
    TILE,
    Anatomy,
    AnatomySettings,
    CellView,
    cell_view,
    dissect_row,
    tile_counts,
    tile_view,
    token_payload,
)
from workbench.anatomy_query import DEFAULTS, OWN, AnatomyQuery, input_store
from workbench.anatomy_rows import ROW_TOKENS, Rows, built_in_rows, file_rows, text_rows
from workbench.bench import Bench
from workbench.components import asked, packed, panel, table_behind
from workbench.examples import EXAMPLE_CONVERSATIONS
from workbench.figures.mask import mask_cells, mask_tiles
from workbench.pages import anatomy_api, anatomy_checks
from workbench.percent import percent

_PRIVATE = {"api_visibility": "private"}
_READ = {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}
_SHOWN_COMPLAINTS = 20
_HAND_OVER = "(query) => window.dispatchEvent(new CustomEvent('dflash:anatomy-link', { detail: query }))"
_TRAINING_SCALE = {"packing": True, "length": 2048, "anchors": 512, "size": 16, "gamma": 7.0}


@dataclass(frozen=True)
class _Page:
    """The components that are written to."""

    tokens: gr.HTML
    cells: gr.Plot
    cells_table: gr.HTML
    tiles: gr.Plot
    tiles_note: gr.HTML
    complaints: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.tokens, self.cells, self.cells_table, self.tiles, self.tiles_note, self.complaints]


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks and wire it."""
    with gr.Column(elem_classes="df-grid-page"):
        with gr.Column(elem_classes="df-main"):
            tokens = panel("anatomy", elem_id="anatomy")
        with gr.Column(elem_classes="df-side"):
            controls, buttons, drop = _controls()
            complaints = gr.HTML(padding=False, elem_id="complaints")
        with gr.Column(elem_classes="df-rest"):
            with gr.Column(elem_classes="df-figure-box"):
                cells = gr.Plot(show_label=False, container=False, elem_id="cells")
                panel("walk", {"plot": "cells", "does": ""})
                cells_table = gr.HTML(padding=False)
            with gr.Column(elem_classes="df-figure-box"):
                tiles = gr.Plot(show_label=False, container=False, elem_id="tiles")
                walk = panel("walk", {"plot": "tiles", "does": "Enter or a click looks into the tile"})
                tiles_note = gr.HTML(padding=False)
            page = _Page(tokens, cells, cells_table, tiles, tiles_note, complaints)
            anatomy_checks.build(
                bench, demo, lambda *values: _rows(bench, AnatomyQuery.of(*values)), [*controls.values(), drop]
            )
    _wire(bench, demo, page, controls, buttons, drop, walk)
    anatomy_api.build(bench)


def _wire(
    bench: Bench,
    demo: gr.Blocks,
    page: _Page,
    controls: dict[str, gr.components.Component],
    buttons: dict[str, gr.Button],
    drop: gr.File,
    walk: gr.HTML,
) -> None:
    inputs = [*controls.values(), drop]
    link = gr.Textbox(visible="hidden", elem_id="anatomy_link")

    def show(*values) -> list[Any]:
        return asked(lambda: _views(bench, AnatomyQuery.of(*values)))

    def show_block(*values) -> list[Any]:
        return asked(lambda: _views(bench, AnatomyQuery.of(*values), everything=False))

    def open_link(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        if not set(query) & {*DEFAULTS.names(), "input"}:
            return [gr.skip()] * (len(controls) + 1)
        linked = asked(lambda: AnatomyQuery.from_query(query, bench.runs))
        return [*_updates(controls, linked), gr.update(visible=linked.conversation == OWN)]

    heavy = [component for name, component in controls.items() if name not in ("block", "tile", "line")]
    changed = [component.input for component in heavy] + [controls["line"].submit, controls["line"].blur, drop.upload]
    changed.append(drop.clear)
    latest = {"trigger_mode": "always_last", **_READ}
    gr.on(changed, show, inputs, page.outputs, **latest)
    chosen = [controls["block"].input, controls["tile"].submit, controls["tile"].blur]
    gr.on(chosen, show_block, inputs, page.outputs, **latest)
    buttons["resample"].click(lambda seed: int(seed or 0) + 1, controls["seed"], controls["seed"], **_READ).then(
        show, inputs, page.outputs, **_READ
    )
    buttons["scale"].click(
        lambda: list(_TRAINING_SCALE.values()), None, [controls[name] for name in _TRAINING_SCALE], **_READ
    ).then(show, inputs, page.outputs, **_READ)
    # A chosen block or tile is what the cells below show; each takes the other's place.
    page.tokens.select(_chosen_block, None, [controls["block"], controls["tile"]], **_READ).then(
        show_block, inputs, page.outputs, **_READ
    )
    walk.select(_chosen_tile, None, controls["tile"], **_READ).then(
        show_block, inputs, page.outputs, **_READ
    )
    page.tokens.link(
        lambda *values: asked(lambda: _link(bench, AnatomyQuery.of(*values))), inputs, link, **_READ
    ).success(None, link, None, js=_HAND_OVER, **_PRIVATE)
    controls["conversation"].change(
        lambda name: [gr.update(visible=name == OWN)] * 2, controls["conversation"], [controls["line"], drop], **_READ
    )
    demo.load(open_link, None, [*controls.values(), drop], **_READ).success(show, inputs, page.outputs, **_READ)


def _chosen_block(event: gr.EventData) -> list[Any]:
    return [int(event.block), ""]


def _chosen_tile(event: gr.EventData) -> str:
    return f"{int(event.row)}, {int(event.column)}"


def _controls() -> tuple[dict[str, gr.components.Component], dict[str, gr.Button], gr.File]:
    """The settings by the names of `AnatomyQuery`, the buttons, and where files are dropped."""
    low, high = ROW_TOKENS
    conversation = gr.Dropdown(
        [*EXAMPLE_CONVERSATIONS, OWN], value=DEFAULTS.conversation, label="Conversation", elem_id="conversation"
    )
    line = gr.Textbox(
        label="JSON lines, each with a messages list",
        placeholder='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
        lines=4,
        max_lines=8,
        visible=False,
        elem_id="line",
    )
    drop = gr.File(
        label="… or drop a JSONL file, which goes first",
        file_types=[".jsonl", ".json"],
        height=110,
        visible=False,
        elem_id="drop",
    )
    packing = gr.Checkbox(False, label="Packed: several conversations in one row", elem_id="packing", container=False)
    item = gr.Number(1, label="Which conversation or row", precision=0, minimum=1, elem_id="item")
    length = gr.Slider(
        low, high, DEFAULTS.length, step=128, label="Row length (tokens, at most)", elem_id="length", buttons=[]
    )
    anchors = gr.Slider(1, 512, DEFAULTS.anchors, step=1, label="Anchor slots (N)", elem_id="anchors", buttons=[])
    size = gr.Slider(2, 32, DEFAULTS.size, step=1, label="Block size (K)", elem_id="anatomy_block_size", buttons=[])
    gamma = gr.Slider(0.5, 12, DEFAULTS.gamma, step=0.5, label="Decay gamma (slots)", elem_id="gamma", buttons=[])
    window = gr.Slider(0, 512, 0, step=8, label="Sliding window (tokens, 0 = none)", elem_id="window", buttons=[])
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", min_width=90)
        resample = gr.Button("Resample", elem_id="resample", min_width=100)
    with gr.Row():
        block = gr.Number(DEFAULTS.block, label="Chosen block", precision=0, minimum=0, elem_id="block", min_width=90)
        tile = gr.Textbox(
            "", label="Or a tile (row, column)", placeholder="none", elem_id="tile", max_lines=1, min_width=100
        )
    scale = gr.Button("Training scale: 8,192 slots", elem_id="training_scale")
    controls = {
        "conversation": conversation,
        "line": line,
        "packing": packing,
        "item": item,
        "length": length,
        "anchors": anchors,
        "size": size,
        "gamma": gamma,
        "window": window,
        "seed": seed,
        "block": block,
        "tile": tile,
    }
    return controls, {"resample": resample, "scale": scale}, drop


def _updates(controls: dict[str, gr.components.Component], linked: AnatomyQuery) -> list[Any]:
    values = [getattr(linked, name) for name in controls]
    place = list(controls).index("line")
    values[place] = gr.update(value=values[place], visible=linked.conversation == OWN)
    return values


def _rows(bench: Bench, query: AnatomyQuery) -> Rows:
    options = {"packing": query.packing, "length": query.length}
    if query.conversation != OWN:
        return built_in_rows(bench.target, query.conversation, **options)
    if query.file:
        return file_rows(bench.target, Path(query.file), **options)
    return text_rows(bench.target, query.line, **options)


def _views(bench: Bench, query: AnatomyQuery, *, everything: bool = True) -> list[Any]:
    """Values of all outputs; without `everything` only what depends on the chosen block or tile is new."""
    rows = _rows(bench, query)
    settings = AnatomySettings(query.anchors, query.size, query.gamma, query.seed, query.window or None)
    anatomy = dissect_row(bench.target, rows.row(query.item), settings, query.length if query.packing else None)
    # A smaller number of anchors may leave the chosen block behind: fall back to the last one.
    block = min(max(0, query.block), anatomy.plan.num_anchors - 1)
    about: dict[str, Any] = {"address": _address(bench, query)}
    about |= {"item": min(max(1, query.item), len(rows.rows)), "items": len(rows.rows), "packing": query.packing}
    view = cell_view(anatomy, block) if query.place is None else tile_view(anatomy, *query.place)
    shown = [packed(token_payload(anatomy, block) | about), *_cells(view)]
    if not everything:
        return [*shown, *[gr.skip()] * 3]
    tiles = anatomy.tiles
    figure = mask_tiles(tiles.state.tolist(), TILE, anatomy.plan.sequence_length, tiles.seen.tolist())
    return [*shown, figure, _tiles_note(anatomy), _complaints(rows)]


def _cells(view: CellView) -> list[Any]:
    figure = mask_cells(view.visible, view.words, view.row_names, view.column_names, view.context_columns, view.title)
    if len(view.row_names) * len(view.column_names) > 2_000:
        words = "A whole tile has too many cells for a table: walk over them with the arrow keys, or choose a block."
        return [figure, f'<p class="df-note">{words}</p>']
    rows = [
        [row_name, column_name, "yes" if cell else "no", words]
        for row_name, cells, sentences in zip(view.row_names, view.visible, view.words, strict=True)
        for column_name, cell, words in zip(view.column_names, cells, sentences, strict=True)
    ]
    return [figure, table_behind("Every cell in words", ["slot", "key", "visible", "why"], rows)]


def _tiles_note(anatomy: Anatomy) -> str:
    counts = tile_counts(anatomy)
    kinds = "".join(
        f'<span><i class="df-tile-key {name}"></i>{name} <b>{counts[name]:,}</b></span>'
        for name in ("full", "partial", "empty")
    )
    words = (
        f"{counts['slots']:,} slots × {counts['keys']:,} keys = {counts['cells']:,} cells in {counts['tiles']:,} tiles "
        f"of {TILE}×{TILE}"
    )
    skipped = percent(counts["skipped"])
    return (
        f'<p class="df-tiles-note">{html.escape(words)}: {kinds}<span> — <b>{skipped}</b> of the tiles '
        f'are never computed.</span></p><p class="df-note">{counts["visible_cells"]:,} cells are visible: '
        f'{percent(counts["visible_share_of_computed"])} of those in the tiles that are computed.</p>'
    )


def _complaints(rows: Rows) -> str:
    """The lines that were left out, one sentence each."""
    complaints = rows.complaints()
    if not complaints:
        return ""
    items = "".join(f"<li>{html.escape(words)}</li>" for words in complaints[:_SHOWN_COMPLAINTS])
    more = len(complaints) - _SHOWN_COMPLAINTS
    rest = f"<li>… and {more:,} more.</li>" if more > 0 else ""
    used = f"{rows.conversations:,} used, {len(complaints):,} left out"
    return f'<div class="df-complaints" role="status"><b>{used}</b><ul>{items}{rest}</ul></div>'


def _link(bench: Bench, query: AnatomyQuery) -> str:
    """The query string of a link that shows this page again; what was pasted or dropped is kept for it.

    Raises:
        UserError: it is too large to be kept.
    """
    values = query.to_query()
    if query.conversation == OWN:
        values["input"] = input_store(bench.runs).save(_own_text(query))
    return urlencode(values)


def _address(bench: Bench, query: AnatomyQuery) -> str:
    """As `_link`, but keeps nothing: empty for a conversation that was not kept, rather than another one's."""
    values = query.to_query()
    if query.conversation == OWN:
        values["input"] = input_store(bench.runs).find(_own_text(query))
        if values["input"] is None:
            return ""
    return urlencode(values)


def _own_text(query: AnatomyQuery) -> str:
    return Path(query.file).read_text(encoding="utf-8", errors="replace") if query.file else query.line
