"""The attention mask, drawn as FlexAttention's tiles and as single cells."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.figures.palette import DRAFT, EMPTY, TARGET, lay_out

_MOST_WRAPPED = 4_000  # cells; more of them get two plain lines, since breaking sentences into lines takes its time
TILE_STATES = ("empty: skipped", "partial: masked cell by cell", "full: no mask needed")


def mask_tiles(
    states: Sequence[Sequence[int]],
    tile: int,
    context_length: int,
    seen: Sequence[Sequence[int]] | None = None,
) -> go.Figure:
    """Tiles of the mask, one row per tile of draft slots; states are 0 empty, 1 partial, 2 full; `seen` counts the
    visible cells of each."""
    rows, columns = len(states), len(states[0])
    words = [
        [
            f"slots {tile * row}–{tile * row + tile - 1}, keys {tile * column}–{tile * column + tile - 1}:<br>"
            f"{TILE_STATES[states[row][column]]}"
            + ("" if seen is None else f" ({seen[row][column]:,} cells visible)")
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    figure = go.Figure(_categories(states, [EMPTY, TARGET, DRAFT]))
    figure.data[0].update(customdata=words, hovertemplate="%{customdata}<extra></extra>", xgap=1, ygap=1)
    boundary = context_length / tile - 0.5
    figure.add_vline(x=boundary, line={"color": "#8a94a0", "width": 1.5, "dash": "dash"})
    figure.update_xaxes(tickvals=_ticks(columns), ticktext=[str(tile * tick) for tick in _ticks(columns)])
    slots = [str(tile * tick) for tick in _ticks(rows)]
    figure.update_yaxes(tickvals=_ticks(rows), ticktext=slots, autorange="reversed")
    height = 130 + max(90, min(460, 26 * rows))
    lay_out(
        figure,
        "How much work is skipped?",
        x=f"key: {context_length} context tokens | draft slots",
        y="draft slot",
        height=height,
    )
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def mask_cells(
    visible: Sequence[Sequence[bool]],
    words: Sequence[Sequence[str]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    context_columns: int,
    title: str = "What may each slot of this block see?",
) -> go.Figure:
    """Single cells, of one block's rows or of a whole tile; `words` says for each why it is visible or not."""
    states = [[int(cell) for cell in row] for row in visible]
    figure = go.Figure(_categories(states, [EMPTY, DRAFT]))
    few = len(row_names) * len(column_names) <= _MOST_WRAPPED
    wrapped = [[_wrap(text) if few else _halved(text) for text in row] for row in words]
    gap = 2 if few else 0.5
    figure.data[0].update(customdata=wrapped, hovertemplate="%{customdata}<extra></extra>", xgap=gap, ygap=gap)
    if 0 < context_columns < len(column_names):
        figure.add_vline(x=context_columns - 0.5, line={"color": "#8a94a0", "width": 1.5, "dash": "dash"})
    columns, rows = (_ticks(len(names), 44) for names in (column_names, row_names))
    names = [html.escape(column_names[tick]) for tick in columns]
    figure.update_xaxes(tickvals=columns, ticktext=names, tickangle=-60, tickfont={"size": 11})
    figure.update_yaxes(
        tickvals=rows, ticktext=[row_names[tick] for tick in rows], autorange="reversed", tickfont={"size": 11}
    )
    height = 190 + (24 * len(row_names) if len(row_names) <= 32 else 5 * len(row_names))
    lay_out(figure, title, x="context tokens | draft slots", y="", height=height)
    figure.update_layout(margin={"l": 64, "b": 110})
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def _categories(states: Sequence[Sequence[int]], colours: Sequence[str]) -> go.Heatmap:
    """A heatmap of whole numbers 0..n-1, each in one flat colour."""
    count = len(colours)
    edges = [(edge / count, colours[edge]) for edge in range(count)]
    scale = [stop for place, colour in edges for stop in ((place, colour), (place + 1 / count, colour))]
    return go.Heatmap(z=[list(row) for row in states], zmin=-0.5, zmax=count - 0.5, colorscale=scale, showscale=False)


def _ticks(count: int, most: int = 12) -> list[int]:
    step = max(1, -(-count // most))
    return list(range(0, count, step))


def _halved(text: str) -> str:
    """Two lines: what, and why."""
    return html.escape(text).replace(": ", ":<br>", 1)


def _wrap(text: str, width: int = 46) -> str:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    # Plotly reads a little HTML in its texts, so tokens like "<b>" must not look like it.
    return "<br>".join(html.escape(part) for part in [*lines, line])
