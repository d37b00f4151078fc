"""What speed a draft's tau buys: lines of equal speed-up with measured dots, and every block size on one machine.

speed-up = tau * t_target / (t_draft + t_verify + t_overhead)
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from dflash.evaluation.block_sizes_file import SizeRow
from dflash.evaluation.speedup import StepCost
from workbench.figures.intervals import error_bars
from workbench.figures.palette import DRAFT, IDLE, TARGET, lay_out

_SPEEDUPS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Dot:
    """A measured or supposed draft: what a step costs and yields. `speedup` is the measured one, where there is one."""

    name: str
    cost: StepCost
    tau: float
    speedup: float | None = None


def iso_speedup(supposed: Dot, measured: Sequence[Dot] = ()) -> go.Figure:
    """Lines of equal speed-up over what a step costs (in tokens of the target alone) and what it yields (tau)."""
    dots = [supposed, *measured]
    widest = 1.3 * max([1.5, *(dot.cost.break_even_tau for dot in dots)])
    tallest = 1.25 * max([2.0, *(dot.tau for dot in dots)])
    fastest = max(dot.cost.speedup(dot.tau) for dot in dots)
    figure = go.Figure()
    for speedup in (number for number in _SPEEDUPS if number <= max(2.0, 3 * fastest)):
        # tau is at least 1, so a line begins where it crosses that floor.
        start, end = 1 / speedup, min(widest, tallest / speedup)
        if start >= end:
            continue
        figure.add_scatter(
            x=[start, end],
            y=[1, speedup * end],
            mode="lines+text",
            text=["", f"{speedup:g}×"],
            textposition="top center" if end < widest else "middle right",
            textfont={"size": 12},
            cliponaxis=False,
            line={"color": TARGET if speedup == 1 else IDLE, "width": 2 if speedup == 1 else 1},
            hoverinfo="skip",
            showlegend=False,
        )
    if measured:
        figure.add_scatter(
            x=[dot.cost.break_even_tau for dot in measured],
            y=[dot.tau for dot in measured],
            mode="markers",
            name="measured",
            marker={"size": 11, "color": DRAFT, "symbol": "circle"},
            customdata=[[_words(dot)] for dot in measured],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    figure.add_scatter(
        x=[supposed.cost.break_even_tau],
        y=[supposed.tau],
        mode="markers",
        name="what if",
        marker={"size": 15, "color": "rgba(0,0,0,0)", "symbol": "diamond", "line": {"width": 3, "color": TARGET}},
        customdata=[[_words(supposed)]],
        hovertemplate="%{customdata[0]}<extra></extra>",
    )
    lay_out(
        figure,
        "What would make it faster?",
        x="cost of a step, in tokens of the target alone",
        y="tau, tokens per step",
        height=430,
    )
    figure.update_xaxes(range=[0, widest]).update_yaxes(range=[1, tallest])
    legend = {"y": -0.18, "yanchor": "top", "x": 0, "xanchor": "left"}
    return figure.update_layout(legend=legend, margin={"t": 66, "b": 84, "r": 44})


def speed_by_block_size(rows: Sequence[SizeRow]) -> go.Figure:
    """Measured speed-up of every block size (median, lowest and highest prompt) beside what the formula expects."""
    sizes = [row.block_size for row in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=sizes,
        y=[row.cost.speedup(row.tau) for row in rows],
        name="expected from tau and times",
        mode="lines+markers",
        line={"color": IDLE, "dash": "dash", "width": 1.5},
        marker={"symbol": "square", "size": 7},
        hovertemplate="block size %{x}: %{y:.2f}× expected<extra></extra>",
    )
    figure.add_scatter(
        x=sizes,
        y=[row.speedup for row in rows],
        error_y=error_bars([(row.speedup, *row.speedup_range) for row in rows], thickness=1, width=3),
        name="measured, with the slowest and fastest prompt",
        mode="lines+markers",
        line={"color": DRAFT, "width": 2},
        marker={"size": 9},
        customdata=[[row.tau, row.steps] for row in rows],
        hovertemplate="block size %{x}: %{y:.2f}×"
        "<br>tau %{customdata[0]:.2f} over %{customdata[1]} steps<extra></extra>",
    )
    figure.add_hline(y=1, line={"color": TARGET, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(dtick=1 if len(sizes) < 20 else 4)
    figure.update_yaxes(rangemode="tozero", ticksuffix="×")
    lay_out(
        figure,
        "Which block size is fastest?",
        x="block size, tokens per forward",
        y="speed-up",
        height=340,
    )
    return figure.update_layout(legend={"y": -0.24, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 96})


def step_costs(rows: Sequence[SizeRow]) -> go.Figure:
    """Milliseconds of a step's parts at every block size, with one token of the target alone as a line."""
    figure = go.Figure()
    for part, colour in (("verify", TARGET), ("draft", DRAFT), ("overhead", IDLE)):
        figure.add_bar(
            x=[row.block_size for row in rows],
            y=[getattr(row.cost, part) for row in rows],
            name=part,
            marker_color=colour,
            hovertemplate=f"block size %{{x}}: {part} %{{y:.1f}} ms<extra></extra>",
        )
    alone, sizes = rows[0].cost.target, [row.block_size for row in rows]
    figure.add_scatter(
        x=[sizes[0] - 0.5, sizes[-1] + 0.5],
        y=[alone, alone],
        name=f"one token of the target alone, {alone:.1f} ms",
        mode="lines",
        line={"color": IDLE, "width": 2, "dash": "dash"},
        hoverinfo="skip",
    )
    figure.update_xaxes(dtick=1 if len(rows) < 20 else 4)
    figure.update_yaxes(rangemode="tozero")
    lay_out(figure, "What does a step cost?", x="block size, tokens per forward", y="milliseconds, median", height=340)
    return figure.update_layout(
        barmode="stack", legend={"y": -0.24, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 96}
    )


def _words(dot: Dot) -> str:
    measured = f", measured {dot.speedup:.2f}×" if dot.speedup is not None else ""
    return (
        f"{html.escape(dot.name)}: tau {dot.tau:.2f}, a step costs {dot.cost.break_even_tau:.2f} tokens"
        f"<br>{dot.cost.speedup(dot.tau):.2f}× by the formula{measured}"
    )
