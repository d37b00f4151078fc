"""Where and on what a draft does well: tau by group, by place and by prompt, and acceptance by the target's doubt."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dflash.evaluation.acceptance import Proportion
from dflash.evaluation.breakdown import Estimate
from workbench.figures.acceptance import percent_interval
from workbench.figures.intervals import error_bars
from workbench.figures.palette import DRAFT, IDLE, TARGET, lay_out

_BIN = 0.25  # tokens per forward
_LINE = 20  # characters of a name beside an axis: more would leave a phone's figure no room
_HOVER = "%{customdata[0]}<extra></extra>"


def tau_by_group(groups: Mapping[str, Estimate], what: str) -> go.Figure:
    """Tau of each group as a dot with its 95 % interval; `what` names the kind of group ("category")."""
    return _named_taus(groups, f"Which {what} suits the draft?", mode="markers")


def tau_by_place(estimates: Sequence[Estimate], edges: Sequence[int]) -> go.Figure:
    """Tau of the steps that begin between edges[i] and edges[i + 1] - 1 tokens into the answer."""
    shown = [i for i, estimate in enumerate(estimates) if estimate.value is not None]
    found = [estimates[i] for i in shown]
    figure = go.Figure()
    figure.add_scatter(
        x=[_places(edges, i) for i in shown],
        y=[estimate.value for estimate in found],
        error_y=tau_interval(found),
        mode="lines+markers",
        line={"color": DRAFT, "width": 2},
        marker={"size": 8},
        customdata=[[f"tokens {_places(edges, i)}: {in_words(estimates[i])}"] for i in shown],
        hovertemplate=_HOVER,
        showlegend=False,
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    lay_out(figure, "Does it get better along the text?", x="tokens into the answer", y="tau, with 95 % interval")
    return _floor_of_tau(figure, "y")


def acceptance_by_entropy(proportions: Sequence[Proportion], edges: Sequence[float]) -> go.Figure:
    """Accepted drafts in percent where the target's entropy lies between edges[i] and edges[i + 1] nats."""
    names = [
        f"{low:g}–{high:g}" if high != float("inf") else f"over {low:g}"
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    figure = go.Figure()
    judged = sum(proportion.total for proportion in proportions)
    figure.add_bar(
        x=names,
        y=[100 * proportion.total / judged if judged else 0 for proportion in proportions],
        name="share of all guesses",
        marker_color=IDLE,
        opacity=0.35,
        hovertemplate="%{y:.0f} % of all judged guesses lie here<extra></extra>",
    )
    figure.add_scatter(
        x=names,
        y=[None if proportion.value is None else 100 * proportion.value for proportion in proportions],
        error_y=percent_interval(proportions),
        name="accepted",
        mode="lines+markers",
        line={"color": DRAFT, "width": 2},
        marker={"size": 8},
        customdata=[[proportion.hits, proportion.total] for proportion in proportions],
        hovertemplate="%{x} nats: %{y:.0f} % accepted<br>%{customdata[0]} of %{customdata[1]} guesses<extra></extra>",
    )
    figure.update_xaxes(type="category", tickfont={"size": 11})
    figure.update_yaxes(range=[0, 104], ticksuffix=" %")
    lay_out(
        figure,
        "Do drafts die where the target hesitates?",
        x="entropy of the target, nats",
        y="accepted, with 95 % interval",
    )
    # Above the figure: narrow screens turn the tick labels, which then need the room below.
    return figure.update_layout(legend={"y": 1.0, "x": 0, "xanchor": "left"}, margin={"t": 70}).update_xaxes(
        automargin=True
    )


def tau_distribution(taus: Sequence[float]) -> go.Figure:
    """How many answers reach which tau, in bins of a quarter token."""
    counts = Counter(int((tau - 1) / _BIN) for tau in taus)
    bins = range(max(counts, default=0) + 1)
    figure = go.Figure(
        go.Bar(
            x=[1 + _BIN * (number + 0.5) for number in bins],
            y=[counts[number] for number in bins],
            width=0.94 * _BIN,
            marker_color=DRAFT,
            customdata=[f"{1 + _BIN * number:.2f} to {1 + _BIN * (number + 1):.2f}" for number in bins],
            hovertemplate="%{y} answers with tau %{customdata}<extra></extra>",
        )
    )
    figure.update_xaxes(dtick=0.5, tick0=1)
    figure.update_yaxes(rangemode="tozero", dtick=max(1, round(max(counts.values(), default=1) / 5)))
    return lay_out(figure, "How different are single prompts?", x="tau of one answer, tokens per forward", y="answers")


def tau_over_results(estimates: Mapping[str, Estimate]) -> go.Figure:
    """Tau of several results on the prompts that all of them share, in the order given."""
    return _named_taus(estimates, "Does it get better from one to the next?", mode="lines+markers")


def tau_pairs(pairs: Sequence[tuple[str, float, float]], first: str, second: str) -> go.Figure:
    """One dot per answer: (name, tau of the first draft, tau of the second); above the line the second is better."""
    top = 1.05 * max([2.0, *(max(a, b) for _, a, b in pairs)])
    figure = go.Figure()
    figure.add_scatter(
        x=[1, top],
        y=[1, top],
        mode="lines",
        line={"color": IDLE, "dash": "dash", "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    for better, symbol, colour, words in (
        (True, "circle", DRAFT, "the second is as good or better"),
        (False, "square", TARGET, "the first is better"),
    ):
        chosen = [(name, a, b) for name, a, b in pairs if (b >= a) is better]
        figure.add_scatter(
            x=[a for _, a, _ in chosen],
            y=[b for _, _, b in chosen],
            mode="markers",
            name=words,
            marker={"size": 9, "symbol": symbol, "color": colour, "opacity": 0.85},
            customdata=[[f"{_shortened(name)}: {a:.2f} and {b:.2f}"] for name, a, b in chosen],
            hovertemplate=_HOVER,
        )
    lay_out(
        figure,
        "Which draft is better, prompt by prompt?",
        x=f"tau with {_shortened(first)}",
        y=f"tau with {_shortened(second)}",
        height=380,
    )
    figure.update_xaxes(range=[0.95, top]).update_yaxes(range=[0.95, top])
    return figure.update_layout(legend={"y": -0.2, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 90})


def tau_interval(estimates: Sequence[Estimate]) -> dict:
    """Plotly's asymmetric error bars; an estimate of one prompt has none."""
    spans = [(e.value, *e.interval) if e.interval else (0.0, 0.0, 0.0) for e in estimates]
    return error_bars(spans, thickness=1.5, width=4)


def in_words(estimate: Estimate) -> str:
    """The estimate with its interval and what it rests on."""
    if estimate.value is None:
        return "nothing was decoded"
    span = f" [{estimate.interval[0]:.2f}, {estimate.interval[1]:.2f}]" if estimate.interval else ""
    return f"{estimate.value:.2f}{span}, {estimate.steps} steps of {_counted(estimate.prompts, 'prompt')}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _places(edges: Sequence[int], i: int) -> str:
    return f"{edges[i]}–{edges[i + 1] - 1}"


def _named_taus(estimates: Mapping[str, Estimate], question: str, *, mode: str) -> go.Figure:
    """A dot with its interval for each name, the first one on top."""
    names, values = list(estimates), list(estimates.values())
    figure = go.Figure()
    figure.add_scatter(
        x=[estimate.value for estimate in values],
        y=list(range(len(names))),  # as categories, two names that are shortened alike would become one place
        error_x=tau_interval(values),
        mode=mode,
        line={"color": DRAFT, "width": 1.5, "dash": "dot"},
        marker={"size": 10, "color": DRAFT},
        customdata=[[f"{html.escape(name)}: {in_words(estimate)}"] for name, estimate in estimates.items()],
        hovertemplate=_HOVER,
        showlegend=False,
    )
    figure.update_xaxes(rangemode="tozero")
    # No longer: the title stands below what the names leave of a phone's width.
    lay_out(figure, question, x="tau, with 95 % interval", y="", height=150 + 34 * len(names))
    figure.update_yaxes(
        automargin=True,
        showgrid=False,
        range=[len(names) - 0.4, -0.6],
        tickvals=list(range(len(names))),
        ticktext=[_in_two_lines(name) for name in names],
        tickfont={"size": 11},
    )
    return _floor_of_tau(figure, "x")


def _in_two_lines(name: str) -> str:
    shown = _cut(name)
    return "<br>".join(html.escape(part) for part in (shown[:-_LINE], shown[-_LINE:]) if part)


def _shortened(name: str) -> str:
    # Plotly reads a little HTML in its texts: a category called "<b>" must not look like it.
    return html.escape(_cut(name))


def _cut(name: str) -> str:
    """At most 28 characters, cut early in the name: the end of a result's name holds its checkpoint and time."""
    return name if len(name) <= _LINE + 8 else f"{name[:7]}…{name[-_LINE:]}"


def _floor_of_tau(figure: go.Figure, axis: str) -> go.Figure:
    """A line at 1: what the target alone yields per forward."""
    line = {"color": IDLE, "width": 1, "dash": "dash"}
    return figure.add_vline(x=1, line=line) if axis == "x" else figure.add_hline(y=1, line=line)
