"""Two views of where drafts survive, from the histogram h[i] of accepted drafts per step."""

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.figures.palette import DRAFT, IDLE, TARGET, lay_out


def accepted_per_step(histogram: Sequence[int]) -> go.Figure:
    """Bars of how many steps kept i drafted tokens, i = 0..K-1."""
    steps = sum(histogram)
    share = [count / steps if steps else 0.0 for count in histogram]
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
    return lay_out(figure, "How many guesses survive a step?", x="drafted tokens kept", y="steps")


def survival_by_slot(histogram: Sequence[int]) -> go.Figure:
    """Cumulative acceptance c_k (a guess and all before it kept) and conditional a_k = c_k / c_{k-1}, in percent."""
    cumulative, conditional, trials = slot_survival(histogram)
    slots = list(range(1, len(histogram)))
    figure = go.Figure()
    for name, values, colour, dash, symbol in (
        ("given all before it", conditional, TARGET, "dot", "square"),
        ("this one and all before", cumulative, DRAFT, "solid", "circle"),
    ):
        figure.add_scatter(
            x=slots,
            y=[None if value is None else 100 * value for value in values],
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
            customdata=trials,
            hovertemplate=f"slot %{{x}}: %{{y:.0f}} % kept, {name} (%{{customdata}} trials)<extra></extra>",
        )
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 104], ticksuffix=" %")
    lay_out(figure, "Where do guesses die?", x="slot in the block", y="kept")
    return figure.update_layout(legend={"y": -0.28, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 84})


def slot_survival(histogram: Sequence[int]) -> tuple[list[float | None], list[float | None], list[int]]:
    """Cumulative and conditional acceptance of slots 1..K-1, and how many steps reached each slot."""
    steps = sum(histogram)
    kept = [sum(histogram[slot:]) for slot in range(len(histogram))]  # kept[k]: steps that kept at least k guesses
    cumulative = [count / steps if steps else None for count in kept[1:]]
    conditional = [after / before if before else None for before, after in zip(kept, kept[1:], strict=False)]
    return cumulative, conditional, kept[:-1]
