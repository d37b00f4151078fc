"""Two views of where drafts survive, from the counted acceptance of a decoding or of many."""

from collections.abc import Sequence

import plotly.graph_objects as go

from dflash.evaluation.acceptance import AcceptanceCounts, Proportion
from workbench.figures.intervals import error_bars
from workbench.figures.palette import DRAFT, IDLE, TARGET, lay_out


def accepted_per_step(counts: AcceptanceCounts) -> go.Figure:
    """Bars of how many steps kept i drafted tokens, i = 0..B-1."""
    histogram = counts.histogram
    share = [count / counts.steps if counts.steps else 0.0 for count in histogram]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(histogram))),
            y=list(histogram),
            marker_color=[IDLE if kept == 0 else DRAFT for kept in range(len(histogram))],
            customdata=[f"{part:.0%}" for part in share],
            hovertemplate="%{y} steps (%{customdata}) kept %{x} drafted tokens<extra></extra>",
        )
    )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(rangemode="tozero")
    return lay_out(figure, "How many guesses survive?", x="drafted tokens kept", y="steps")


def survival_by_slot(
    counts: AcceptanceCounts,
    weights: Sequence[float] | None = None,
    question: str = "Where do guesses die?",
    weight: str = "weight in training",
) -> go.Figure:
    """Cumulative and conditional acceptance of every slot in percent, with 95 % intervals.

    `weights` of slots 1, 2, ... are the decay that a training would give them, drawn as percent of the first one's in
    a line that is called `weight`.
    """
    figure = go.Figure()
    if weights is not None:
        figure.add_scatter(
            x=list(range(1, len(weights) + 1)),
            y=[100 * weight for weight in weights],
            name=weight,
            mode="lines",
            line={"color": IDLE, "dash": "dash", "width": 1.5, "shape": "spline"},
            hovertemplate="slot %{x}: weight %{y:.0f} % of the first slot's<extra></extra>",
        )
    for name, proportions, colour, dash, symbol in (
        ("given all before it", counts.conditional, TARGET, "dot", "square"),
        ("this one and all before", counts.cumulative, DRAFT, "solid", "circle"),
    ):
        figure.add_scatter(
            x=list(range(1, len(proportions) + 1)),
            y=[None if p.value is None else 100 * p.value for p in proportions],
            error_y=percent_interval(proportions),
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
            customdata=[[p.hits, p.total] for p in proportions],
            hovertemplate=f"slot %{{x}}: %{{y:.0f}} % kept, {name}"
            "<br>%{customdata[0]} of %{customdata[1]} steps<extra></extra>",
        )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 104], ticksuffix=" %")
    lay_out(figure, question, x="slot in the block", y="kept, with 95 % interval")
    return figure.update_layout(legend={"y": -0.28, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 84})


def percent_interval(proportions: Sequence[Proportion]) -> dict:
    """Plotly's asymmetric error bars; a slot that was never reached has none."""
    shares = [(p.value, *p.interval) if p.total else (0.0, 0.0, 0.0) for p in proportions]
    return error_bars([tuple(100 * share for share in span) for span in shares], thickness=1, width=3)
