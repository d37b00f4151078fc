"""The tokens that drafts miss most, each in its places, as HTML. Every token's text is escaped."""

import html

from dflash.evaluation.breakdown import MissedToken, most_missed
from dflash.evaluation.report_file import Evaluation, Miss

_SHOWN = 15
_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})


def missed_tokens(result: Evaluation) -> str:
    """A panel with the tokens of the target at which most blocks died."""
    head = '<header class="df-head"><h2>Which tokens do drafts miss?</h2></header>'
    if not result.has_detail:
        said = "This result is of an older version and keeps no tokens: evaluate again to see them."
        return f'<section class="df-panel">{head}<p class="df-note">{said}</p></section>'
    found = most_missed(result.answers, _SHOWN)
    if not found:
        return (
            f'<section class="df-panel">{head}<p class="df-note">No block died: there is nothing to show.</p></section>'
        )
    total = result.counts.steps
    rows = "".join(_row(missed) for missed in found)
    note = (
        f"The {len(found)} tokens of the target at which most of {total:,} blocks died, how often of the times a guess "
        "for them was judged, what the draft wrote instead, and one place. · is a space, ↵ a new line."
    )
    return (
        f'<section class="df-panel">{head}<p class="df-note">{note}</p><div class="df-scroll" tabindex="0">'
        '<table class="df-missed"><thead><tr><th>target wrote</th><th>missed</th><th>of</th><th>rate, 95 %</th>'
        f"<th>draft wrote</th><th>for example</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _row(missed: MissedToken) -> str:
    low, high = missed.missed.interval
    instead = " ".join(f"{_chip(text, 'rej')}<small>{count}</small>" for text, count in missed.instead)
    return (
        f"<tr><td>{_chip(missed.text, 'own')}</td><td>{missed.missed.hits:,}</td><td>{missed.missed.total:,}</td>"
        f"<td>{100 * missed.missed.value:.0f} % <small>{100 * low:.0f}–{100 * high:.0f}</small></td><td>{instead}</td>"
        f"<td>{_place(missed.examples[0])}</td></tr>"
    )


def _place(miss: Miss) -> str:
    before = html.escape(miss.before[-40:].translate(_VISIBLE)) or "<em>start of the answer</em>"
    title = f"slot {miss.slot}, token {miss.position} of the answer, entropy of the target {miss.entropy:.2f} nats"
    chips = _chip(miss.draft_text, "rej") + _chip(miss.target_text, "own")
    return f'<span class="df-place" title="{title}">{before}{chips}</span>'


def _chip(text: str, kind: str) -> str:
    return f'<span class="df-chip {kind}">{html.escape(text.translate(_VISIBLE)) or "∅"}</span>'
