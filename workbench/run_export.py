"""Runs to take away: every record as CSV, and one HTML page that needs no other file and no network."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.curves import PANELS, PROFILE, SLOTS, curves, slot_profile
from workbench.figures.training import over_steps, slot_profile_figure
from workbench.metric_lines import Record
from workbench.run_series import RunSeries
from workbench.run_summary import RunSummary

_FIRST = ("run", "kind", "step", "batch")
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 24px auto; max-width: 1100px; padding: 0 16px; color: #1b2026;
background: #fff; }
h1 { font-size: 22px; } h2 { font-size: 18px; margin-top: 32px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 3px 14px 3px 0; border-bottom: 1px solid #e0e3e7; }
th:first-child, td:first-child { text-align: left; }
details { margin: 4px 0 20px; font-size: 14px; } summary { cursor: pointer; color: #56606c; }
.scroll { overflow-x: auto; } p.muted { color: #56606c; }
"""


def as_csv(runs: Mapping[str, Sequence[Record]]) -> str:
    """One line per record, one column per value; lists become `name/1`, `name/2`..., parts of a record `name.part`."""
    rows = [_flat(name, record) for name, records in runs.items() for record in records]
    columns = list(dict.fromkeys([*_FIRST, *(column for row in rows for column in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_page(runs: Sequence[RunSeries], rows: Sequence[RunSummary], compared: Mapping[str, Any]) -> str:
    """Figures that can be zoomed, a table behind each, and the settings that differ; all scripts are inside."""
    title = "Runs: " + ", ".join(run.name for run in runs)
    parts = [f"<h1>{html.escape(title)}</h1>", _overview(rows)]
    if compared["rows"]:
        parts += ["<h2>What differs between them?</h2>", _table(["setting", *compared["runs"]], compared["rows"])]
    for panel in (*PANELS[:2], SLOTS, *PANELS[2:]):
        if curves(panel, runs, 2):
            parts += _figure(over_steps(panel, runs), panel.explains, panel.key)
    if any(slot_profile(run) for run in runs):
        parts += _figure(slot_profile_figure(*runs), PROFILE.explains, PROFILE.key)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>"
    )


def _flat(run: str, record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {"run": run}
    for name, value in record.items():
        flat |= _entries(name, value)
    return flat


def _entries(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        named = value.items()
        return {column: entry for key, part in named for column, entry in _entries(f"{name}.{key}", part).items()}
    if isinstance(value, list):
        numbered = enumerate(value, 1)
        return {column: entry for i, part in numbered for column, entry in _entries(f"{name}/{i}", part).items()}
    return {name: "" if value is None else value}


def _overview(rows: Sequence[RunSummary]) -> str:
    columns = ["run", "state", "step", "loss", "loss, held out", "tau, estimated", "tau, decoded", "tokens/s"]
    cells = [
        [
            row.name,
            row.state,
            _number(row.step),
            _number(row.loss),
            _number(row.validation_loss),
            _number(row.tau_estimate),
            _number(row.decoded_tau),
            _number(row.tokens_per_second),
        ]
        for row in rows
    ]
    exported = f"Exported from DFlash Workbench, {datetime.now():%Y-%m-%d %H:%M}."
    return f'<p class="muted">{exported}</p>{_table(columns, cells)}'


def _figure(figure: go.Figure, explains: str, key: str) -> list[str]:
    # The file has no script of the page around it, so the figure brings toolbar-free zooming of its own.
    figure.update_xaxes(fixedrange=False)
    figure.update_yaxes(fixedrange=False)
    figure.update_layout(paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
    quiet = {"displaylogo": False}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{key}", config=quiet)
    rows = [
        [trace.name, _number(x), _number(y)]
        for trace in figure.data
        if trace.hoverinfo != "skip"
        for x, y in zip(trace.x, trace.y, strict=True)
    ]
    table = _table(["curve", "step" if key != PROFILE.key else "slot", "value"], rows)
    return [drawn, f'<p class="muted">{html.escape(explains)}</p><details><summary>Table</summary>{table}</details>']


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
