"""Colours and layout shared by all figures: blue and orange, readable on light and dark ground alike."""

import plotly.graph_objects as go

DRAFT = "#3b7dd8"
TARGET = "#d97a1e"
IDLE = "#8a94a0"
EMPTY = "rgba(128, 138, 150, 0.16)"
# Runs laid over one another, told apart in light and dark and by the colour-blind; the first ones are draft and target.
RUNS = (DRAFT, TARGET, "#1f9a8a", "#8c6bd1", "#a5841f", IDLE)
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def along_the_block(slot: int, slots: int) -> str:
    """Colour of slot 1..slots: blue near the anchor, grey in the middle, orange at the far end."""
    place = (slot - 1) / max(1, slots - 1) * 2
    start, end = (DRAFT, IDLE) if place <= 1 else (IDLE, TARGET)
    share = place if place <= 1 else place - 1
    return blend(start, end, share)


def slot_colour(slot: int, slots: int, runs: int) -> str:
    """Of slot 1..slots of the first of so many runs: from blue to orange, or shades of its own colour beside others."""
    if runs == 1:
        return along_the_block(slot, slots)
    return blend(RUNS[0], IDLE, 0.7 * (slot - 1) / max(1, slots - 1))


def blend(start: str, end: str, share: float) -> str:
    """The colour that lies this share of the way from `start` to `end`."""
    mixed = (round(a + (b - a) * share) for a, b in zip(_rgb(start), _rgb(end), strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def translucent(colour: str, share: float) -> str:
    """The colour with this share of opacity, as Plotly takes it."""
    red, green, blue = _rgb(colour)
    return f"rgba({red}, {green}, {blue}, {share})"


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def lay_out(figure: go.Figure, question: str, *, x: str, y: str, height: int = 300) -> go.Figure:
    """The house style: a question as title, named axes with units, no toolbar, a transparent ground."""
    figure.update_layout(
        title={
            "text": question,
            "font": {"size": 17},
            "pad": {"l": 2, "t": 4},
            **{"x": 0, "xref": "container"},
            **{"y": 1, "yref": "container", "yanchor": "top"},
        },
        font={"family": FONT, "size": 13},
        height=height,
        margin={"l": 56, "r": 12, "t": 48, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        bargap=0.25,
    )
    axis_title = {"font": {"size": 13}}
    shared = {"gridcolor": "rgba(128,138,150,0.25)", "zeroline": False, "fixedrange": True}
    figure.update_xaxes(title={"text": x} | axis_title, **shared)
    figure.update_yaxes(title={"text": y} | axis_title, **shared)
    return figure
