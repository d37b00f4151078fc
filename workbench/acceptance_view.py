"""What the Acceptance page shows of one result: figures with their tables, and the words around them."""

import html
from typing import Any

import plotly.graph_objects as go

from dflash.blocks.plan import decay_weights
from dflash.errors import UserError
from dflash.evaluation.acceptance import AcceptanceCounts, Proportion
from dflash.evaluation.breakdown import Estimate, acceptance_by, tau_by, tau_by_position, tau_of
from dflash.evaluation.report_file import Evaluation
from workbench.components import table_behind
from workbench.figures.acceptance import survival_by_slot
from workbench.figures.breakdown import acceptance_by_entropy, tau_by_group, tau_by_place, tau_distribution
from workbench.figures.palette import DRAFT, IDLE, TARGET, translucent

GROUPS = {"set": "prompt set", "category": "category", "language": "language"}
ENTROPY_EDGES = (0, 0.05, 0.2, 0.5, 1, 2, 3, float("inf"))
_PLACES = (1, 9, 17, 33, 65, 129, 257, 513, 1025, 2049, 4097, 8193, 1 << 40)
_SLIDER_STEP = 0.1  # of gamma
_NARROW = 0.07  # of the strip's width: too narrow for a label

Figure = tuple[go.Figure | None, str]  # with the table behind it, or words in its place


def lead(result: Evaluation, recorded: dict[str, str] | None) -> str:
    """The answer to the page's question as HTML: where blocks die, how many live, and what that yields."""
    counts = result.counts
    tau = tau_of(result.answers)
    facts = [
        ("tau, tokens per forward", _with_interval(tau)),
        ("speed-up, median of prompts", "–" if result.speedup is None else f"{result.speedup:.2f}×"),
        ("blocks judged", f"{counts.steps:,}"),
        ("prompts", f"{tau.prompts:,}"),
        ("identical to plain decoding", _identical(result)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        '<section class="df-panel df-accept"><header class="df-head"><h2>Where do drafts die?</h2>'
        f"{_badge(result, recorded)}</header>"
        f'<p class="df-answer">{_answer(counts)}</p>{_strip(counts)}'
        f'<dl class="df-facts">{cells}</dl><p class="df-note">{_about(result)}</p></section>'
    )


def survival(result: Evaluation, gamma: float, trained_with: float | None) -> Figure:
    """Acceptance of every slot with the weights that a training with `gamma` gives them.

    `trained_with` is the gamma of the draft's own training, None where nothing says it: only that one is called so.
    """
    counts = result.counts
    weights = decay_weights(result.block_size, gamma)[1:].tolist()
    rows = [
        [slot, *_shares(together), *_shares(alone), f"{100 * share:.0f} %"]
        for slot, (together, alone, share) in enumerate(
            zip(counts.cumulative, counts.conditional, weights, strict=True), 1
        )
    ]
    own = trained_with is not None and abs(gamma - trained_with) <= _SLIDER_STEP / 2
    weight = f"weight in training (gamma {gamma:g})" if own else f"weight at gamma {gamma:g}"
    columns = ["slot", "this and all before", "95 %", "steps", "given all before", "95 %", "steps", weight]
    figure = survival_by_slot(counts, weights, "How far do blocks get?", weight=weight)
    return figure, table_behind("Table", columns, rows)


def by_group(result: Evaluation, field: str) -> Figure:
    """Tau by prompt set, category or language.

    Raises:
        UserError: there is no such grouping.
    """
    if field not in GROUPS:
        raise UserError(f"Results are not grouped by {field!r}: choose one of {', '.join(GROUPS)}.")
    groups = tau_by(result.answers, field)
    rows = [[name, *_cells(estimate)] for name, estimate in groups.items()]
    return tau_by_group(groups, GROUPS[field]), table_behind("Table", [GROUPS[field], *_COLUMNS], rows)


def by_place(result: Evaluation) -> Figure:
    """Tau along the answers."""
    if not result.has_detail:
        return None, _missing_detail("how tau goes along the text")
    longest = max((len(answer.detail.tokens) for answer in result.answers), default=1)
    edges = [edge for edge, before in zip(_PLACES, (0, *_PLACES), strict=False) if before < longest]
    estimates = tau_by_position(result.answers, edges)
    rows = [
        [f"{edges[i]}–{edges[i + 1] - 1}", *_cells(estimate)] for i, estimate in enumerate(estimates) if estimate.steps
    ]
    return tau_by_place(estimates, edges), table_behind("Table", ["tokens into the answer", *_COLUMNS], rows)


def by_entropy(result: Evaluation) -> Figure:
    """Acceptance by how sure the target was of its own token."""
    if not result.has_detail:
        return None, _missing_detail("how sure the target was")
    found = acceptance_by(result.answers, ENTROPY_EDGES, lambda judgement: judgement.entropy)
    rows = [
        [f"{low:g} – {high:g}", *_shares(proportion)]
        for low, high, proportion in zip(ENTROPY_EDGES, ENTROPY_EDGES[1:], found, strict=False)
    ]
    return acceptance_by_entropy(found, ENTROPY_EDGES), table_behind(
        "Table", ["nats", "accepted", "95 %", "guesses"], rows
    )


def distribution(result: Evaluation) -> Figure:
    """Tau of single answers."""
    ranked = sorted((a for a in result.answers if a.tau is not None), key=lambda a: a.tau)
    rows = [[a.set, a.id, a.turn + 1, a.steps, f"{a.tau:.2f}"] for a in ranked]
    figure = tau_distribution([a.tau for a in ranked])
    return figure, table_behind("Table, the lowest first", ["set", "prompt", "turn", "steps", "tau"], rows)


_COLUMNS = ("tau", "95 %", "steps", "prompts")


def _cells(estimate: Estimate) -> list[str]:
    value = "–" if estimate.value is None else f"{estimate.value:.2f}"
    span = f"{estimate.interval[0]:.2f}–{estimate.interval[1]:.2f}" if estimate.interval else "one prompt"
    return [value, span, f"{estimate.steps:,}", f"{estimate.prompts:,}"]


def _shares(proportion: Proportion) -> list[str]:
    if proportion.value is None:
        return ["–", "–", "0"]
    low, high = proportion.interval
    return [
        f"{100 * proportion.value:.0f} %",
        f"{100 * low:.0f}–{100 * high:.0f} %",
        f"{proportion.hits:,} of {proportion.total:,}",
    ]


def _answer(counts: AcceptanceCounts) -> str:
    """One sentence: how many blocks die at the first guess, and how many are accepted whole."""
    first, whole = counts.histogram[0] / counts.steps, counts.histogram[-1] / counts.steps
    last = len(counts.histogram) - 1
    guesses = "guess" if last == 1 else f"{last} guesses"
    return (
        f"<strong>{_percent(first)} %</strong> of blocks die at their first guess; "
        f"<strong>{_percent(whole)} %</strong> keep all {guesses}."
    )


def _percent(share: float) -> str:
    """Whole percents, and one decimal where they would round something to nothing."""
    return f"{100 * share:.1f}" if 0 < share < 0.01 else f"{100 * share:.0f}"


def _strip(counts: AcceptanceCounts) -> str:
    """All blocks as one bar, cut by the slot at which they died."""
    slots = len(counts.histogram) - 1
    segments, words = [], []
    for kept, number in enumerate(counts.histogram):
        share = number / counts.steps
        label = "whole" if kept == slots else str(kept + 1)
        fate = f"keep all {slots} guesses" if kept == slots else f"die at slot {kept + 1}"
        words.append(f"{100 * share:.1f} % {fate}")
        if not number:
            continue
        colour = DRAFT if kept == slots else _fading(kept, slots)
        shown = f"<b>{label}</b><span>{100 * share:.0f} %</span>" if share >= _NARROW else ""
        segments.append(
            f'<div style="flex-grow:{number}" title="{100 * share:.1f} % of blocks {fate}: {number:,}">'
            f'<i style="background:{colour}"></i>{shown}</div>'
        )
    return (
        f'<div class="df-deaths" role="img" aria-label="{"; ".join(words)}">{"".join(segments)}</div>'
        '<p class="df-key">All blocks, cut by the slot whose guess the target refused; blue: all guesses stood.</p>'
    )


def _fading(kept: int, slots: int) -> str:
    """Orange for an early death, fading towards grey for a late one."""
    return translucent(TARGET, 1 - 0.75 * kept / max(1, slots - 1)) if kept < slots - 1 else IDLE


def _badge(result: Evaluation, recorded: dict[str, str] | None) -> str:
    where = machine_words(result.machine)
    if recorded:
        words = f"Recorded · {recorded.get('machine') or where} · {recorded['date']}"
        return f'<span class="df-badge" title="{html.escape(recorded["command"])}">{html.escape(words)}</span>'
    return f'<span class="df-note">{html.escape(where)}</span>'


def machine_words(machine: dict[str, Any]) -> str:
    """What a measurement was made on, for one line."""
    if machine.get("gpu"):
        return f"{machine['gpu']}, {machine.get('dtype')}"
    threads = machine.get("threads")
    cores = f"{threads} thread" if threads == 1 else f"{threads} threads"
    return f"{machine.get('cpu') or machine.get('device')}, {cores}, {machine.get('dtype')}"


def _about(result: Evaluation) -> str:
    settings = result.settings
    temperature = settings.get("temperature") or 0
    mode = f"temperature {temperature:g}" if temperature else "greedy"
    sets = ", ".join(dict.fromkeys(answer.set for answer in result.answers if answer.set)) or "prompts of one file"
    return html.escape(
        f"Draft {result.draft_name} for {settings.get('target')} · block size {result.block_size} · {mode} · "
        f"at most {settings.get('max_new_tokens')} new tokens · {sets}"
    )


def _identical(result: Evaluation) -> str:
    checked = [answer.identical for answer in result.answers if answer.identical is not None]
    return f"{sum(checked):,} of {len(checked):,}" if checked else "not judged when sampling"


def _with_interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    span = estimate.interval
    return f"{estimate.value:.2f}" + (f" <small>{span[0]:.2f}–{span[1]:.2f}</small>" if span else "")


def _missing_detail(what: str) -> str:
    return words(f"This result is of an older version and does not say {what}: evaluate again to see it.")


def words(text: str) -> str:
    """A sentence in place of a figure."""
    return f'<p class="df-empty">{html.escape(text)}</p>'
