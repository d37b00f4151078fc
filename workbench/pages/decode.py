"""The Decode page: one prompt, decoded by the target alone and by draft + target, side by side."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from dflash.decoding.sampling import RULES
from dflash.errors import UserError
from dflash.evaluation.acceptance import AcceptanceCounts, Proportion
from workbench.bench import Bench
from workbench.components import packed, panel, table_behind
from workbench.examples import EXAMPLE_PROMPTS
from workbench.figures.acceptance import accepted_per_step, survival_by_slot
from workbench.race import Race, RaceSettings, failed

RECORDING = Path(__file__).parent.parent / "recordings" / "race.json"
COMPUTE = "compute"  # everything that computes waits in one queue: two decodings at once would spoil both timings
_RULE_NAMES = {"target": "Sample the target, accept while equal", "rejection": "Full rejection sampling"}


def load_recording(path: Path = RECORDING) -> dict[str, Any] | None:
    """The race shown before anything was run here, or None when none was recorded."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks and wire it."""
    recording = load_recording()
    with gr.Column(elem_classes="df-grid-page"):
        with gr.Column(elem_classes="df-main"):
            race = panel("race", recording["race"] if recording else None, elem_id="race")
        with gr.Column(elem_classes="df-side"):
            controls = _controls(bench)
            with gr.Row():
                start = gr.Button("Decode", variant="primary", elem_id="decode", scale=3)
                stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=70)
        with gr.Column(elem_classes="df-rest"):
            details = panel("details", recording["race"] | {"trace": recording["trace"]} if recording else None)
            histogram = recording["trace"]["accepted_histogram"] if recording else None
            with gr.Row(elem_classes="df-figures", visible=recording is not None) as figures:
                plots = _figure_boxes(histogram)
    outputs = [race, details, figures, *plots]
    inputs = list(controls.values())

    def decode_prompt(*values) -> Iterator[list[Any]]:
        yield from stream_race(bench, RaceSettings(**dict(zip(controls, values, strict=True))))

    def open_link(request: gr.Request):
        query = dict(request.query_params)
        defaults = RaceSettings("", block_size=bench.block_size(), draft=bench.draft_name)
        if "prompt" not in query:
            return [gr.skip()] * len(controls)
        try:
            settings = RaceSettings.from_query(query, defaults)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [getattr(settings, name) for name in controls]

    def decode_link(
        prompt: str,
        max_new_tokens: int,
        block_size: int,
        temperature: float,
        rule: str,
        draft: str,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        if "prompt" in request.query_params:
            yield from decode_prompt(prompt, max_new_tokens, block_size, temperature, rule, draft)
        else:
            yield [gr.skip()] * len(outputs)

    compute = {"outputs": outputs, "concurrency_id": COMPUTE, "concurrency_limit": 1, "show_progress": "hidden"}
    private = {"api_visibility": "private"}
    clicked = gr.on(
        [start.click, controls["prompt"].submit], decode_prompt, inputs, trigger_mode="multiple", **compute, **private
    )
    linked = demo.load(open_link, None, inputs, concurrency_limit=None, show_progress="hidden", **private)
    opened = linked.success(decode_link, inputs, **compute, **private)
    stop.click(None, cancels=[clicked, opened], **private).then(
        None, js="() => window.dispatchEvent(new CustomEvent('dflash:stopped'))", **private
    )
    controls["draft"].change(
        lambda name, size: gr.Slider(maximum=bench.block_size(name), value=min(size, bench.block_size(name))),
        [controls["draft"], controls["block_size"]],
        controls["block_size"],
        concurrency_limit=None,
        show_progress="hidden",
        **private,
    )
    _api(bench)


def stream_race(bench: Bench, settings: RaceSettings) -> Iterator[list[Any]]:
    """Values for race, details, the row of figures, and each figure with its table, while a race runs."""
    rest = [gr.skip()] * 6
    race = Race(bench, settings)
    last: dict[str, Any] = {}
    try:
        for last in race.run():
            if last["phase"] != "done":
                yield [packed(last), *rest]
    except UserError as error:
        yield [packed(failed(settings, str(error))), *rest]
        return
    exported = race.export()
    figures = figure_values(exported["accepted_histogram"])
    yield [packed(last), packed(last | {"trace": exported}), gr.Row(visible=True), *figures]


def figure_values(histogram: list[int]) -> list[Any]:
    """Both acceptance figures, each followed by the table behind it."""
    counts = AcceptanceCounts(tuple(histogram))
    slots = [
        [slot, _share(together), _share(alone), f"{alone.hits} of {alone.total}"]
        for slot, (together, alone) in enumerate(zip(counts.cumulative, counts.conditional, strict=True), 1)
    ]
    return [
        accepted_per_step(counts),
        table_behind("Table", ["kept", "steps"], [[kept, count] for kept, count in enumerate(histogram)]),
        survival_by_slot(counts),
        table_behind("Table", ["slot", "this and all before", "given all before", "steps"], slots),
    ]


def _share(proportion: Proportion) -> str:
    return "–" if proportion.value is None else f"{100 * proportion.value:.0f} %"


def _figure_boxes(histogram: list[int] | None) -> list[gr.Plot | gr.HTML]:
    values = figure_values(histogram) if histogram else [None] * 4
    boxes: list[gr.Plot | gr.HTML] = []
    for plot, table in (values[:2], values[2:]):
        with gr.Column(elem_classes="df-figure-box"):
            boxes.append(gr.Plot(plot, show_label=False, container=False))
            boxes.append(gr.HTML(table, padding=False))
    return boxes


def _controls(bench: Bench) -> dict[str, gr.components.Component]:
    """The settings by the names of `RaceSettings`."""
    first = next(iter(EXAMPLE_PROMPTS.values()))
    prompt = gr.Textbox(first, label="Prompt", lines=4, max_lines=8, elem_id="prompt", submit_btn=False)
    with gr.Row(elem_classes="df-examples"):
        for name, text in EXAMPLE_PROMPTS.items():
            button = gr.Button(name, size="sm")
            button.click(
                None, None, prompt, js=f"() => {json.dumps(text)}", api_visibility="private", show_progress="hidden"
            )
    tokens = gr.Slider(8, 512, 128, step=8, label="New tokens, at most", elem_id="max_new_tokens", buttons=[])
    largest = bench.block_size()
    block = gr.Slider(2, largest, largest, step=1, label="Block size (tokens per forward, at most)", elem_id="block_size", buttons=[])
    temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0 = greedy)", elem_id="temperature", buttons=[])
    rule = gr.Dropdown(
        [(_RULE_NAMES[rule], rule) for rule in RULES],
        value=RULES[0],
        label="Verification above temperature 0",
        elem_id="rule",
    )
    draft = gr.Dropdown(
        bench.drafts(),
        value=bench.draft_name,
        allow_custom_value=True,
        label="Draft (shipped, or a folder)",
        elem_id="draft",
    )
    return {
        "prompt": prompt,
        "max_new_tokens": tokens,
        "block_size": block,
        "temperature": temperature,
        "rule": rule,
        "draft": draft,
    }


def _api(bench: Bench) -> None:
    def decode(
        prompt: str,
        max_new_tokens: int = 128,
        block_size: int = 0,
        temperature: float = 0.0,
        rule: str = "target",
        draft: str = "",
        seed: int = 0,
    ) -> dict:
        """Decode a prompt with the target alone and with draft + target; returns traces, tau, speed-up and identity."""
        race = Race(bench, RaceSettings(prompt, max_new_tokens, block_size, temperature, rule, draft, seed))
        try:
            for _ in race.run():
                pass
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return race.export()

    gr.api(decode, api_name="decode", concurrency_id=COMPUTE, concurrency_limit=1)
