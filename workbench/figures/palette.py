"""Colours and layout shared by all figures: blue and orange, readable on light and dark ground alike."""

import plotly.graph_objects as go

DRAFT = "#3b7dd8"
TARGET = "#d97a1e"
IDLE = "#8a94a0"
EMPTY = "rgba(128, 138, 150, 0.16)"
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def lay_out(figure: go.Figure, question: str, *, x: str, y: str, height: int = 300) -> go.Figure:
    """The house style: a question as title, named axes with units, no toolbar, a transparent ground."""
    figure.update_layout(
        title={"text": question, "x": 0, "xref": "container", "font": {"size": 17}, "pad": {"l": 2, "t": 4}, "y": 1, "yref": "container", "yanchor": "top"},
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
    figure.update_xaxes(title={"text": x} | axis_title, gridcolor="rgba(128,138,150,0.25)", zeroline=False, fixedrange=True)
    figure.update_yaxes(title={"text": y} | axis_title, gridcolor="rgba(128,138,150,0.25)", zeroline=False, fixedrange=True)
    return figure
