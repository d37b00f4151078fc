"""What a setting does: a measure per value with its interval and its single runs, and the same for two settings."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from workbench.figures.intervals import error_bars
from workbench.figures.palette import DRAFT, IDLE, TARGET, lay_out

# Opaque and light on any ground, so that one dark ink can be read on all of them.
_SHADES, _INK = ((0, "#eef2f8"), (1, "#8fb5ea")), "#14202e"


@dataclass(frozen=True)
class Measured:
    """A value of the setting and what came of it: the measure, its 95 % interval, and the single runs behind it."""

    label: str
    value: float
    low: float
    high: float
    runs: Sequence[float] = ()
    count: str = ""  # what it rests on, in words

    @property
    def words(self) -> str:
        return html.escape(f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] {self.count}".strip())


def measure_by_setting(
    points: Sequence[Measured], question: str, *, setting: str, measure: str, baseline: str | None = None
) -> go.Figure:
    """One mark per value of a setting with its 95 % interval; small marks are single runs.

    `baseline` is the label of the value that the others are compared with: drawn in orange, with a line across.
    """
    labels = [html.escape(point.label) for point in points]
    chosen = next((point for point in points if point.label == baseline), None)
    figure = go.Figure()
    figure.add_scatter(
        x=[label for label, point in zip(labels, points, strict=True) for _ in point.runs],
        y=[run for point in points for run in point.runs],
        mode="markers",
        name="single runs",
        marker={"color": IDLE, "size": 8, "symbol": "line-ew-open", "line": {"width": 2}},
        hovertemplate="%{x}: a single run, %{y:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=labels,
        y=[point.value for point in points],
        error_y=error_bars([(p.value, p.low, p.high) for p in points], color=DRAFT, thickness=1.5, width=5),
        mode="markers",
        name="all runs, 95 % interval",
        marker={
            "color": [TARGET if point is chosen else DRAFT for point in points],
            "symbol": ["square" if point is chosen else "circle" for point in points],
            "size": 10,
        },
        customdata=[point.words for point in points],
        hovertemplate="%{x}: %{customdata}<extra></extra>",
    )
    if chosen is not None:
        figure.add_hline(y=chosen.value, line={"color": TARGET, "width": 1, "dash": "dot"})
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels)
    lay_out(figure, question, x=setting, y=measure, height=360)
    return figure.update_layout(legend={"y": -0.22, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 90})


def measure_by_two_settings(
    cells: Sequence[Sequence[Measured | None]],
    question: str,
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    rows: str,
    columns: str,
    measure: str,
) -> go.Figure:
    """A measure for each pair of settings, the number and its interval in every cell; None leaves a cell empty."""
    known = [cell for row in cells for cell in row if cell is not None]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if cell is None else cell.value for cell in row] for row in cells],
            x=list(column_labels),
            y=list(row_labels),
            text=[["" if cell is None else _in_cell(cell) for cell in row] for row in cells],
            customdata=[["" if cell is None else cell.words for cell in row] for row in cells],
            texttemplate="%{text}",
            textfont={"size": 14, "color": _INK},
            hovertemplate=f"{html.escape(rows)} %{{y}}, {html.escape(columns)} %{{x}}: %{{customdata}}<extra></extra>",
            # Over the span of all intervals: what lies within them looks alike.
            zmin=min(cell.low for cell in known),
            zmax=max(cell.high for cell in known),
            colorscale=_SHADES,
            colorbar={"title": {"text": measure, "side": "right"}, "thickness": 12, "outlinewidth": 0},
            xgap=3,
            ygap=3,
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    lay_out(figure, question, x=columns, y=rows, height=130 + 76 * len(cells))
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def _in_cell(cell: Measured) -> str:
    return f"{cell.value:.3f}<br><span style='font-size:11px'>[{cell.low:.3f}, {cell.high:.3f}]</span>"
