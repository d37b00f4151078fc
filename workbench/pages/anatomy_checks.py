"""The gates on the Anatomy page: does the mask leak, and does the draft read the layers it was trained on?"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from dflash.data.template import Rendered
from dflash.errors import UserError
from workbench.anatomy_rows import Rows
from workbench.bench import Bench
from workbench.checks_view import layer_check, layers_html, leak_html, leak_test, message_html
from workbench.sentences import sentence_of
from workbench.turns import place_in_words
from workbench.worker import Waiting, Worker

_PRIVATE = {"api_visibility": "private"}
_READ = {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}
_HEAD = (
    '<header class="df-head"><h2>Is this draft sound?</h2></header><p class="df-lead">The leak test changes every '
    "feature, slot and token in turn: a block's output must not move with what it must not see. The layer check moves "
    "the target's features by one layer up and down: the draft has to get worse.</p>"
)


def build(
    bench: Bench, demo: gr.Blocks, rows_of: Callable[..., Rows], inputs: list[gr.components.Component]
) -> None:
    """Lay out the section; `rows_of` gives the page's rows from the values of `inputs`."""
    with gr.Column(elem_classes="df-figure-box", elem_id="checks"):
        gr.HTML(_HEAD, padding=False)
        with gr.Row(elem_classes="df-checks-controls df-side"):
            draft = gr.Dropdown(
                bench.drafts(), value=bench.draft_name, allow_custom_value=True, label="Draft", elem_id="checked_draft"
            )
            leak = gr.Button("Leak test", elem_id="leak_test", min_width=110)
            layers = gr.Button("Layer check", elem_id="layer_check", min_width=110)
            stop = gr.Button("Stop", elem_id="stop_check", min_width=70)
        result = gr.HTML(message_html("Neither was run yet."), padding=False, elem_id="check_result")

    def run_leak(draft: str) -> Iterator[Any]:
        yield from _stream(lambda report: leak_html(leak_test(bench, draft, report=report)))

    def run_layers(draft: str, *values) -> Iterator[Any]:
        def work(report: Callable[[str], None]) -> str:
            try:
                given = _conversations(rows_of(*values))
            except UserError:
                given = []  # the page says what is wrong with them; the built-in prompts take their place
            return layers_html(layer_check(bench, draft, given, report=report))

        yield from _stream(work)

    started = [
        leak.click(run_leak, draft, result, **_READ),
        layers.click(run_layers, [draft, *inputs], result, **_READ),
    ]
    demo.load(lambda: gr.update(choices=bench.drafts()), None, draft, **_READ)
    stop.click(lambda: message_html("Stopped."), None, result, cancels=started, **_PRIVATE)


def _conversations(rows: Rows) -> list[Rendered]:
    """The row's documents as conversations of their own, which the layer check counts by."""
    found = []
    for row in rows.rows:
        for name, start, tokens in zip(row.ids, row.starts, row.documents, strict=True):
            found.append(Rendered(name, tokens, row.loss_mask[start : start + len(tokens)]))
    return found


def _stream(work: Callable[[Callable[[Any], None]], str]) -> Iterator[Any]:
    yield message_html("Starting …")
    worker = Worker(work)
    try:
        for report in worker:
            if report is None:
                yield gr.skip()
            else:
                yield message_html(place_in_words(report) if isinstance(report, Waiting) else report)
        yield worker.result
    except Exception as error:  # whatever it is, a test that runs for ever would not say so
        yield message_html(sentence_of(error), bad=True)
