"""What a run will be, before it begins: its learning rate over the steps, and what takes its memory."""

from collections.abc import Sequence

import plotly.graph_objects as go

from dflash.config import TrainConfig
from dflash.training.memory import MemoryPart
from dflash.training.schedule import RatePoint, learning_rate
from workbench.figures.palette import DRAFT, IDLE, TARGET, lay_out

_MOST_POINTS = 300


def rate_points(config: TrainConfig, steps: int, corners: Sequence[RatePoint]) -> list[tuple[int, float]]:
    """Steps, counted from 1, and their learning rates: evenly spread, every corner among them."""
    optimizer = config.optimizer
    chosen = {round(i * (steps - 1) / max(1, _MOST_POINTS - 1)) + 1 for i in range(min(steps, _MOST_POINTS))}
    chosen |= {point.step for point in corners} | {1, steps}
    return [
        (step, learning_rate(step - 1, steps, optimizer.lr, optimizer.min_lr, config.schedule))
        for step in sorted(chosen)
    ]


def learning_rate_curve(points: Sequence[tuple[int, float]], corners: Sequence[RatePoint]) -> go.Figure:
    """The schedule as `rate_points` gives it; the marks are the corners that the dry run names."""
    figure = go.Figure()
    figure.add_scatter(
        x=[step for step, _ in points],
        y=[rate for _, rate in points],
        mode="lines",
        line={"color": DRAFT, "width": 2},
        hovertemplate="step %{x}: %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    figure.add_scatter(
        x=[point.step for point in corners],
        y=[point.rate for point in corners],
        mode="markers",
        marker={"color": TARGET, "size": 9, "symbol": "square"},
        customdata=[point.name for point in corners],
        hovertemplate="%{customdata}, step %{x}: %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(rangemode="tozero", tickformat=".1e")
    lay_out(figure, "When does it learn how fast?", x="optimizer step", y="learning rate", height=210)
    return figure.update_layout(margin={"l": 64, "b": 44})


def memory_bars(parts: Sequence[MemoryPart], place: str, capacity: int | None = None) -> go.Figure:
    """GiB of every part of one rank, the largest first; `place` names the device, `capacity` is its memory in bytes.

    Parts in host memory are orange where the device is not the host.
    """
    ordered = sorted(parts, key=lambda part: part.bytes)
    figure = go.Figure(
        go.Bar(
            x=[part.bytes / 2**30 for part in ordered],
            y=[part.name.removeprefix("draft: ") for part in ordered],
            orientation="h",
            marker_color=[TARGET if part.on_host else DRAFT for part in ordered],
            customdata=["host memory" if part.on_host else place for part in ordered],
            hovertemplate="%{y}: %{x:.2f} GiB of %{customdata}<extra></extra>",
        )
    )
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(rangemode="tozero")
    if capacity is not None:
        taken = sum(part.bytes for part in parts if not part.on_host)
        text = f"{taken / 2**30:.1f} of {capacity / 2**30:.0f} GiB"
        figure.add_annotation(text=text, x=1, y=1.02, xref="paper", yref="paper", showarrow=False, xanchor="right",
                              yanchor="bottom", font={"color": IDLE if taken <= capacity else TARGET})  # fmt: skip
    height = 92 + 20 * max(3, len(ordered))
    return lay_out(figure, f"What takes the memory of {place}?", x="GiB", y="", height=height)
