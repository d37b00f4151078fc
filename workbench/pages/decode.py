"""The Decode page: one prompt, decoded by the target alone and by draft + target, side by side."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from dflash.decoding.sampling import RULES
from dflash.evaluation.acceptance import AcceptanceCounts, Proportion
from workbench.bench import Bench
from workbench.components import asked, packed, panel, table_behind
from workbench.examples import EXAMPLE_PROMPTS
from workbench.figures.acceptance import accepted_per_step, survival_by_slot
from workbench.pages import decode_api, decode_ways
from workbench.percent import percent
from workbench.race import Race, failed, new_id
from workbench.race_record import RaceRecord, exported, parse_record, picture_of
from workbench.race_settings import RaceSettings, parse_history
from workbench.sentences import sentence_of
from workbench.traces import open_trace, save_trace, saved_picture
from workbench.turns import bench_turns, place_in_words

RECORDING = Path(__file__).parent.parent / "recordings" / "race.json"
_RULE_NAMES = {"target": "Sample the target, accept while equal", "rejection": "Full rejection sampling"}
# Ends of the sliders; the block size ends with the draft's.
_SLIDERS = {"max_new_tokens": (8, 512), "block_size": (2, 2), "temperature": (0, 1.5)}
_PRIVATE = {"api_visibility": "private"}
_READ = {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}
# What computes waits for its turn in `bench_turns`, where it can say so; Gradio's own limit would wait in silence.
_COMPUTE = {"concurrency_limit": None, "show_progress": "hidden", **_PRIVATE}

_STOPPED = "() => window.dispatchEvent(new CustomEvent('dflash:stopped'))"
# The address always names the settings, as the link that is copied does.
_REMEMBER = """(...values) => {
  const [talk, said] = [values.pop(), values.pop()];
  const settings = Object.fromEntries(NAMES.map((name, place) => [name, values[place]]));
  const detail = { ...settings, history: talk ? JSON.parse(said || "[]") : [] };
  window.dispatchEvent(new CustomEvent("dflash:edited", { detail }));
}"""
_HAND_OVER = "(id) => window.dispatchEvent(new CustomEvent('dflash:saved', { detail: id }))"


def load_recording(path: Path = RECORDING) -> dict[str, Any] | None:
    """The details of the race shown before anything was run here, or None when none was recorded."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    record = parse_record(kept["record"])
    return picture_of(record, new_id()) | {"recorded": kept["recorded"], "trace": exported(record)}


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks and wire it."""
    recording = load_recording()
    with gr.Column(elem_classes="df-grid-page"):
        with gr.Column(elem_classes="df-main"):
            history = panel("history", [], elem_id="history", visible=False)
            race = panel("race", recording and _without_trace(recording), elem_id="race")
        with gr.Column(elem_classes="df-side"):
            controls, talk, examples = _controls(bench)
            with gr.Row():
                start = gr.Button("Decode", variant="primary", elem_id="decode", scale=3)
                stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=70)
        with gr.Column(elem_classes="df-rest"):
            details = panel("details", recording, elem_id="details")
            histogram = recording["trace"]["accepted_histogram"] if recording else None
            with gr.Row(elem_classes="df-figures", visible=recording is not None) as figures:
                plots = _figure_boxes(histogram)
            decode_ways.build(bench, controls, history, talk)
    last = gr.State(None)  # the record of the race that this tab shows, for saving
    saved = gr.Textbox(visible="hidden", elem_id="saved")
    outputs = [race, details, figures, *plots, history, controls["prompt"], last]
    inputs = [*controls.values(), history, talk]
    names = list(controls)

    def decode_prompt(*values) -> Iterator[list[Any]]:
        *own, history, talk = values
        yield from stream_race(bench, dict(zip(names, own, strict=True)), history if talk else "", talk)

    def open_link(request: gr.Request) -> list[Any]:
        settings = _linked_settings(bench, dict(request.query_params))
        if settings is None:
            return [gr.skip()] * (len(names) + 2)
        said = list(settings.history)
        return [
            *(_control_value(bench, name, settings) for name in names),
            gr.update(value=packed(said), visible=bool(said)),
            bool(said),
        ]

    def show_link(
        prompt: str,
        max_new_tokens: int,
        block_size: int,
        temperature: float,
        rule: str,
        seed: int,
        draft: str,
        history: str,
        talk: bool,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        query = request.query_params
        if "trace" in query:
            record = asked(lambda: open_trace(bench.runs, query["trace"]))
            yield _finished(record, saved_picture(record), [gr.skip()] * 3)
        elif query.get("prompt", "").strip():  # without one a link restores the settings and decodes nothing
            own = (prompt, max_new_tokens, block_size, temperature, rule, seed, draft)
            yield from decode_prompt(*own, history, talk)
        else:
            yield [gr.skip()] * len(outputs)

    # Wired before what decodes, which the address would have to wait for.
    edited = [component.input for component in (*controls.values(), talk)]
    edited += [controls["prompt"].blur, start.click, controls["prompt"].submit]
    remember = {"fn": None, "inputs": inputs, "js": _REMEMBER.replace("NAMES", json.dumps(names)), **_PRIVATE}
    gr.on(edited, trigger_mode="multiple", **remember)
    for example in examples:
        example.success(**remember)
    clicked = gr.on(
        [start.click, controls["prompt"].submit], decode_prompt, inputs, outputs, trigger_mode="multiple", **_COMPUTE
    )
    linked = demo.load(open_link, None, inputs, **_READ)
    opened = linked.success(show_link, inputs, outputs, **_COMPUTE)
    stop.click(None, cancels=[clicked, opened], **_PRIVATE).then(None, js=_STOPPED, **_PRIVATE)
    details.save(lambda record: _save(bench, record), last, saved, **_READ).success(
        None, saved, None, js=_HAND_OVER, **_PRIVATE
    )
    talk.change(lambda on: gr.update(visible=on), talk, history, **_READ)
    controls["draft"].input(
        lambda name, size: gr.Slider(maximum=bench.block_size(name), value=min(size, bench.block_size(name))),
        [controls["draft"], controls["block_size"]],
        controls["block_size"],
        **_READ,
    ).success(**remember)
    # Runs that were trained since this server started have drafts, too.
    demo.load(lambda: gr.update(choices=bench.drafts()), None, controls["draft"], **_READ)
    decode_api.build(bench)


def stream_race(bench: Bench, controls: dict[str, Any], history: str, talk: bool) -> Iterator[list[Any]]:
    """Values for race, details, row of figures, each figure with its table, history, prompt and the last record.

    In a conversation (`talk`) the prompt and its answer join the history when the race is over.
    """
    rest = [gr.skip()] * 9
    settings = RaceSettings(controls["prompt"])
    try:
        settings = settings_of(controls, history)
        race = Race(bench, settings)
        with bench_turns.ticket() as turn:
            for ahead in turn.waiting():
                yield [packed(race.picture("waiting", place_in_words(ahead))), *rest]
            picture: dict[str, Any] = {}
            for picture in race.run():
                if picture["phase"] != "done":
                    yield [packed(picture), *rest]
        said = [gr.skip(), gr.skip()]
        if talk:
            said = [packed([*settings.messages(), {"role": "assistant", "content": race.answer() or "…"}]), ""]
        yield _finished(race.record, picture, [*said, race.record])
    except Exception as error:  # whatever it is, lanes that wait for ever would not say so
        yield [packed(failed(settings, sentence_of(error))), *rest]


def settings_of(controls: dict[str, Any], history: str | list | None) -> RaceSettings:
    """The settings that controls and history describe; numbers arrive as the browser sends them.

    Raises:
        UserError: the history is no conversation.
    """
    values = dict(controls)
    for name in ("max_new_tokens", "block_size", "seed"):
        values[name] = int(values.get(name) or 0)
    return RaceSettings(**values, history=parse_history(history))


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


def _finished(record: RaceRecord, picture: dict[str, Any], said_and_record: list[Any]) -> list[Any]:
    """All outputs for a race that is over."""
    trace = exported(record)
    figures = figure_values(trace["accepted_histogram"])
    return [packed(picture), packed(picture | {"trace": trace}), gr.Row(visible=True), *figures, *said_and_record]


def _linked_settings(bench: Bench, query: dict[str, str]) -> RaceSettings | None:
    """What a link asks for; None for the bare address."""
    if "trace" in query:
        settings = asked(lambda: open_trace(bench.runs, query["trace"])).settings.model_dump()
        return RaceSettings(**settings | {"history": tuple(settings["history"])})
    if "prompt" not in query:
        return None
    # A block size that is not named stays 0, the draft's own: the link may name another draft.
    defaults = RaceSettings("", draft=bench.draft_name)
    return asked(lambda: RaceSettings.from_query(query, defaults))


def _control_value(bench: Bench, name: str, settings: RaceSettings) -> Any:
    """A control's value for a link. Sliders are widened to hold it: Gradio refuses what lies beyond their ends, and
    traces of the API or of another draft may."""
    value = getattr(settings, name)
    if name not in _SLIDERS:
        return value
    low, high = _SLIDERS[name]
    if name == "block_size":
        high = bench.block_size(settings.draft)
        value = value or high  # 0 is the draft's own
    return gr.Slider(minimum=min(low, value), maximum=max(high, value), value=value)


def _save(bench: Bench, record: RaceRecord | None) -> str:
    if record is None:
        raise gr.Error("There is no run of this tab to save: press Decode first.", print_exception=False)
    return asked(lambda: save_trace(bench.runs, record))


def _without_trace(details: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if name != "trace"}


def _share(proportion: Proportion) -> str:
    return "–" if proportion.value is None else percent(proportion.value)


def _figure_boxes(histogram: list[int] | None) -> list[gr.Plot | gr.HTML]:
    values = figure_values(histogram) if histogram else [None] * 4
    boxes: list[gr.Plot | gr.HTML] = []
    for plot, table in (values[:2], values[2:]):
        with gr.Column(elem_classes="df-figure-box"):
            boxes.append(gr.Plot(plot, show_label=False, container=False))
            boxes.append(gr.HTML(table, padding=False))
    return boxes


def _controls(
    bench: Bench,
) -> tuple[dict[str, gr.components.Component], gr.Checkbox, list[gr.events.Dependency]]:
    """The settings by the names of `RaceSettings`, whether this is a conversation, and what fills in an example."""
    first = next(iter(EXAMPLE_PROMPTS.values()))
    prompt = gr.Textbox(first, label="Prompt", lines=4, max_lines=8, elem_id="prompt", submit_btn=False)
    examples = []
    with gr.Row(elem_classes="df-examples"):
        for name, text in EXAMPLE_PROMPTS.items():
            button = gr.Button(name, size="sm")
            fill = f"() => {json.dumps(text)}"
            examples.append(button.click(None, None, prompt, js=fill, show_progress="hidden", **_PRIVATE))
    talk = gr.Checkbox(False, label="Conversation: go on from what was said", elem_id="talk", container=False)
    tokens = gr.Slider(8, 512, 128, step=8, label="New tokens, at most", elem_id="max_new_tokens", buttons=[])
    largest = bench.block_size()
    block = gr.Slider(
        2, largest, largest, step=1, label="Block size (tokens per forward, at most)", elem_id="block_size", buttons=[]
    )
    temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0 = greedy)", elem_id="temperature", buttons=[])
    rule = gr.Dropdown(
        [(_RULE_NAMES[rule], rule) for rule in RULES],
        value=RULES[0],
        label="Verification above temperature 0",
        elem_id="rule",
    )
    seed = gr.Number(0, label="Seed above temperature 0", precision=0, minimum=0, elem_id="decode_seed")
    draft = gr.Dropdown(
        bench.drafts(),
        value=bench.draft_name,
        allow_custom_value=True,
        label="Draft (shipped, or a folder)",
        elem_id="draft",
    )
    controls = {
        "prompt": prompt,
        "max_new_tokens": tokens,
        "block_size": block,
        "temperature": temperature,
        "rule": rule,
        "seed": seed,
        "draft": draft,
    }
    return controls, talk, examples
