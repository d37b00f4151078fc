"""How a training run goes: each curve over steps, accuracy along the block, one run or several over one another.

All take `RunSeries` (`RunSeries.read("runs/one")`); the first is drawn in the draft's blue.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.curves import PANELS, PROFILE, SLOTS, Curve, Panel, about_runs, curves, slot_profile
from workbench.figures.acceptance import percent_interval
from workbench.figures.palette import RUNS, lay_out, slot_colour, translucent
from workbench.run_series import RunSeries

_POINTS = 800  # of a line; the rest is in the band around it
_MARKS = {"dots": ("lines+markers", "circle"), "diamonds": ("lines+markers", "diamond")}  # others are lines alone
_DASHES = {"line": "solid", "dashed": "dash", "dotted": "dot", "dots": "solid", "diamonds": "dot"}
_PANELS = {panel.key: panel for panel in PANELS}


def loss_curves(*runs: RunSeries) -> go.Figure:
    """Training and held-out loss over steps."""
    return over_steps(_PANELS["loss"], runs)


def tau_over_steps(*runs: RunSeries) -> go.Figure:
    """Tau over steps: estimated in training and on held-out rows, and decoded."""
    return over_steps(_PANELS["tau"], runs)


def slot_accuracy(run: RunSeries) -> go.Figure:
    """Accuracy of every slot over steps."""
    return over_steps(SLOTS, [run])


def learning_rate(*runs: RunSeries) -> go.Figure:
    """Learning rate over steps."""
    return over_steps(_PANELS["lr"], runs)


def tokens_per_second(*runs: RunSeries) -> go.Figure:
    """Training speed over steps."""
    return over_steps(_PANELS["speed"], runs)


def data_wait(*runs: RunSeries) -> go.Figure:
    """Share of the time without data, over steps."""
    return over_steps(_PANELS["wait"], runs)


def over_steps(panel: Panel, runs: Sequence[RunSeries]) -> go.Figure:
    """Any chart over steps."""
    figure = go.Figure()
    panel = about_runs(panel, runs)
    drawn = curves(panel, runs, _POINTS)
    for curve in drawn:
        colour = RUNS[curve.run % len(RUNS)] if curve.slot is None else slot_colour(curve.slot, len(drawn), len(runs))
        name = curve.label if len(runs) == 1 else f"{runs[curve.run].name}, {curve.label}"
        _draw(figure, curve, colour, name, panel.unit)
    lay_out(figure, panel.question, x="step", y=panel.unit, height=320)
    return _legend_below(figure)


def slot_profile_figure(*runs: RunSeries) -> go.Figure:
    """Accuracy along the block at the last validation, with 95 % intervals."""
    figure = go.Figure()
    for place, run in enumerate(runs):
        shares = slot_profile(run)
        figure.add_scatter(
            x=list(range(1, len(shares) + 1)),
            y=[100 * (share.value or 0.0) for share in shares],
            error_y=percent_interval(shares),
            name=run.name,
            mode="lines+markers",
            line={"color": RUNS[place % len(RUNS)], "width": 2},
            customdata=[[share.hits, share.total] for share in shares],
            hovertemplate="slot %{x}: %{y:.1f} %<br>%{customdata[0]} of %{customdata[1]} tokens"
            "<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 104], ticksuffix=" %")
    lay_out(figure, PROFILE.question, x="slot in the block", y="right, with 95 % interval", height=320)
    return _legend_below(figure)


def _draw(figure: go.Figure, curve: Curve, colour: str, name: str, unit: str) -> None:
    points = curve.points
    if points.low is not None:
        # The band first, so that the line lies on it: there along the top and back along the bottom.
        figure.add_scatter(
            x=[*points.x, *points.x[::-1]],
            y=[*points.high, *points.low[::-1]],
            fill="toself",
            fillcolor=translucent(colour, 0.18),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            name=f"{name}: least and largest",
        )
    mode, symbol = _MARKS.get(curve.style, ("lines", "circle"))
    figure.add_scatter(
        x=points.x,
        y=points.y,
        name=name,
        mode=mode,
        line={"color": colour, "width": 2.2 if curve.style in _MARKS else 1.4, "dash": _DASHES[curve.style]},
        marker={"symbol": symbol, "size": 7},
        hovertemplate=f"step %{{x:,.0f}}: %{{y:.4g}} {unit}<extra>%{{fullData.name}}</extra>",
    )


def _legend_below(figure: go.Figure) -> go.Figure:
    return figure.update_layout(legend={"y": -0.24, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 92})
