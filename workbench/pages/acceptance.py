"""The Acceptance page: where drafts die, on what, against one another, and what that is worth on this machine."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from dflash.config import default_gamma
from dflash.errors import UserError
from dflash.evaluation.block_sizes_file import BlockSizes
from dflash.evaluation.report_file import Evaluation
from dflash.evaluation.speedup import StepCost
from workbench import acceptance_view, compare_view, speed_view
from workbench.bench import Bench
from workbench.evaluate_jobs import EvaluateJobs
from workbench.figures.whatif import Dot
from workbench.missed_view import missed_tokens
from workbench.pages import acceptance_api, acceptance_jobs
from workbench.pages.acceptance_values import figure_values, said, size_values
from workbench.run_reader import RunsRoot
from workbench.trained_gamma import trained_gamma

_READ = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
_GAMMAS = (0.5, 20.0)  # that the slider reaches
_PARTS = ("target", "draft", "verify", "overhead")
_UNTIMED = acceptance_view.words("Nothing was decoded in this result, so there are no times to start from.")
# The address always names what is shown, so that it can be passed on.
_REMEMBER = """(result, others, gamma, group) => {
  const query = new URLSearchParams();
  if (result) query.set("result", result);
  for (const name of others || []) query.append("with", name);
  query.set("gamma", gamma);
  query.set("by", group);
  history.replaceState(null, "", `${location.pathname}?${query}`);
}"""


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks and wire it."""
    desk = EvaluateJobs(bench)
    with gr.Column(elem_classes="df-grid-page"):
        with gr.Column(elem_classes="df-main"):
            lead = gr.HTML('<p class="df-empty">Reading the result…</p>', padding=False, elem_id="lead")
        with gr.Column(elem_classes="df-side"):
            controls = _controls(desk)
            evaluating = acceptance_jobs.controls(desk)
        with gr.Column(elem_classes="df-rest"):
            jobs = acceptance_jobs.job_panel()
            boxes = _boxes()
            missed = gr.HTML(padding=False, elem_id="missed")
            compared = _compare_boxes()
            speed = _speed_boxes()
    outputs = [lead, *boxes, missed, *compared, *speed["sliders"], speed["answer"], *speed["whatif"], *speed["sizes"]]
    settings = [controls["result"], controls["with"], controls["gamma"], controls["group"]]

    def opened(request: gr.Request) -> list[Any]:
        return said(lambda: linked(desk, request.query_params.multi_items()))

    def show(*values) -> list[Any]:
        return said(lambda: views(desk, *values))

    def show_gamma(name: str, gamma: float) -> list[Any]:
        return said(lambda: figure_values(_survival(desk, name, desk.results.load(name), gamma)))

    def show_group(name: str, group: str) -> list[Any]:
        return said(lambda: figure_values(acceptance_view.by_group(desk.results.load(name), group)))

    def suppose(name: str, others: Sequence[str], *numbers: float) -> list[Any]:
        return said(lambda: _supposed(desk, [name, *(others or [])], numbers))

    remember = {"fn": None, "inputs": settings, "js": _REMEMBER, **_READ}
    demo.load(opened, None, settings, **_READ).then(show, settings, outputs, **_READ).then(**remember)
    # `input` and not `change`: what `opened` fills in is shown once, by the event above.
    controls["with"].input(show, settings, outputs, **_READ).then(**remember)
    controls["result"].input(
        lambda name: _gamma_of(desk, name), controls["result"], controls["gamma"], **_READ
    ).then(show, settings, outputs, **_READ).then(**remember)
    controls["gamma"].input(
        show_gamma, [controls["result"], controls["gamma"]], boxes[:2], trigger_mode="always_last", **_READ
    ).then(**remember)
    controls["group"].input(show_group, [controls["result"], controls["group"]], boxes[2:4], **_READ).then(**remember)
    gr.on(
        [slider.input for slider in speed["sliders"]],
        suppose,
        [controls["result"], controls["with"], *speed["sliders"]],
        [speed["answer"], *speed["whatif"]],
        trigger_mode="always_last",
        **_READ,
    )
    acceptance_jobs.wire(desk, demo, evaluating, jobs, controls, speed["measure"], speed["sizes"])
    acceptance_api.add_endpoints(desk)


def linked(desk: EvaluateJobs, query: Sequence[tuple[str, str]]) -> list[Any]:
    """Values of result, comparison, gamma and grouping as a link has them; the newest result without one.

    Raises:
        UserError: a number or a grouping of the link is none.
    """
    names = desk.results.names()
    given = dict(query)
    result = given.get("result") or (names[0] if names else None)
    others = [value for key, value in query if key == "with"][: compare_view.MOST - 1]
    choices = list(dict.fromkeys([*names, *([result] if result else []), *others]))
    group = given.get("by", "category")
    if group not in acceptance_view.GROUPS:
        raise UserError(f"The link groups by {group[:40]!r}: choose one of {', '.join(acceptance_view.GROUPS)}.")
    try:
        gamma = float(given["gamma"]) if "gamma" in given else _gamma_of(desk, result)
    except ValueError as error:
        raise UserError(f"The link's gamma {given['gamma'][:40]!r} is no number: correct it.") from error
    return [
        gr.Dropdown(choices=choices, value=result),
        gr.Dropdown(choices=choices, value=others),
        min(max(gamma, _GAMMAS[0]), _GAMMAS[1]),
        group,
    ]


def views(desk: EvaluateJobs, name: str | None, others: Sequence[str], gamma: float, group: str) -> list[Any]:
    """Values of everything on the page that follows from results.

    Raises:
        UserError: there are too many results to compare.
    """
    if not name:
        return _nothing(desk, "Nothing was evaluated yet: choose prompt sets and press Evaluate.")
    try:
        result = desk.results.load(name)
    except UserError as error:
        return _nothing(desk, str(error))  # where the answer would stand: a link may name what is gone
    if not result.counts.steps:
        return _nothing(desk, f"Nothing was decoded with the draft in {name!r}: evaluate with more new tokens.")
    figures = [
        _survival(desk, name, result, gamma),
        acceptance_view.by_group(result, group),
        acceptance_view.by_place(result),
        acceptance_view.by_entropy(result),
        acceptance_view.distribution(result),
    ]
    dot = speed_view.measured_dot(name, result)
    sliders = _slider_values(dot, result) if dot else [gr.skip()] * 5
    numbers = [dot.tau, *(getattr(dot.cost, part) for part in _PARTS)] if dot else None
    return [
        acceptance_view.lead(result, desk.results.recorded(name)),
        *(value for figure in figures for value in figure_values(figure)),
        missed_tokens(result),
        *_compared(desk, name, result, [other for other in others or [] if other != name]),
        *sliders,
        *(_supposed(desk, [name, *(others or [])], numbers) if numbers else [_UNTIMED, gr.update(visible=False), ""]),
        *size_values(desk),
    ]


def _nothing(desk: EvaluateJobs, sentence: str) -> list[Any]:
    """A sentence in place of everything that follows from a result."""
    hidden = [gr.update(visible=False), ""]
    compared = [gr.update(visible=False), "", *hidden * 2]
    whatif = [*[gr.skip()] * 5, "", *hidden]
    return [acceptance_view.words(sentence), *hidden * 5, "", *compared, *whatif, *size_values(desk)]


def _compared(desk: EvaluateJobs, name: str, result: Evaluation, others: Sequence[str]) -> list[Any]:
    """Row, sentence and both figures of the comparison; hidden where there is none."""
    if not others:
        return [gr.update(visible=False), "", gr.update(visible=False), "", gr.update(visible=False), ""]
    if len(others) >= compare_view.MOST:
        raise UserError(f"{len(others) + 1} results are too many to compare: choose up to {compare_view.MOST}.")
    try:
        loaded = [(name, result), *((other, desk.results.load(other)) for other in others)]
    except UserError as error:  # a link may name what is gone: the first result is there all the same
        return [gr.update(visible=True), acceptance_view.words(str(error)), *figure_values(None), *figure_values(None)]
    sentence, pairs = compare_view.one_against_another(loaded[0], loaded[1])
    said = f'<p class="df-answer df-small">{sentence}</p>' if sentence else ""
    return [gr.update(visible=True), said, *figure_values(compare_view.over_results(loaded)), *figure_values(pairs)]


def _supposed(desk: EvaluateJobs, names: Sequence[str], numbers: Sequence[float]) -> list[Any]:
    tau, *times = (float(number) for number in numbers)
    measured = [speed_view.measured_dot(name, result) for name, result in _there(desk, names)]
    sizes = _block_sizes(desk)
    dots = [dot for dot in measured if dot] + speed_view.size_dots(sizes)
    answer, figure = speed_view.whatif(Dot("what if", StepCost(*times), tau), dots)
    return [answer, *figure_values(figure)]


def _there(desk: EvaluateJobs, names: Sequence[str]) -> Iterator[tuple[str, Evaluation]]:
    """The results that can be read; of the others it is said where they are shown."""
    for name in dict.fromkeys(filter(None, names)):
        try:
            yield name, desk.results.load(name)
        except UserError:
            continue


def _block_sizes(desk: EvaluateJobs) -> BlockSizes | None:
    try:
        found = desk.results.block_sizes()
    except UserError:
        return None  # said where block sizes are shown
    return found[0] if found else None


def _slider_values(dot: Dot, result: Evaluation) -> list[Any]:
    """Sliders that begin at what was measured and reach to a few times that."""
    times = [getattr(dot.cost, part) for part in _PARTS]
    return [
        gr.Slider(1, max(16, result.block_size), value=round(dot.tau, 2)),
        *(
            gr.Slider(0.1 if part == "target" else 0, max(10, round(4 * time)), value=round(time, 1))
            for part, time in zip(_PARTS, times, strict=True)
        ),
    ]


def _gamma_of(desk: EvaluateJobs, name: str | None) -> float:
    """What the slider begins with: the draft's own gamma; where nothing says it, the one of its block size."""
    try:
        result = desk.results.load(name) if name else None
    except UserError:
        result = None  # the result itself is complained about where it is shown
    if result is None:
        return 4.0
    own = trained_gamma(name, result, RunsRoot(desk.bench.runs))
    return min(max(round(default_gamma(result.block_size) if own is None else own, 1), _GAMMAS[0]), _GAMMAS[1])


def _survival(desk: EvaluateJobs, name: str, result: Evaluation, gamma: float) -> acceptance_view.Figure:
    return acceptance_view.survival(result, gamma, trained_gamma(name, result, RunsRoot(desk.bench.runs)))


def _controls(desk: EvaluateJobs) -> dict[str, gr.components.Component]:
    names = desk.results.names()
    result = gr.Dropdown(names, value=None, label="Result", elem_id="result")
    others = gr.Dropdown(names, value=[], multiselect=True, label="Compare with", elem_id="with")
    group = gr.Radio(
        [(words, name) for name, words in acceptance_view.GROUPS.items()],
        value="category",
        label="Tau by",
        elem_id="group",
    )
    gamma = gr.Slider(*_GAMMAS, 4, step=0.1, label="Decay gamma drawn over it (slots)", elem_id="decay", buttons=[])
    return {"result": result, "with": others, "group": group, "gamma": gamma}


def _boxes() -> list[gr.components.Component]:
    """Five figures, each followed by the table behind it: survival, groups, places, entropy, distribution."""
    made: list[gr.components.Component] = []
    made += _box("survival")
    with gr.Row(elem_classes="df-figures"):
        for name in ("groups", "places", "entropy", "distribution"):
            made += _box(name)
    return made


def _compare_boxes() -> list[Any]:
    with gr.Column(visible=False, elem_id="compared") as row:
        sentence = gr.HTML(padding=False)
        with gr.Row(elem_classes="df-figures"):
            over, pairs = _box("over"), _box("pairs")
    return [row, sentence, *over, *pairs]


def _speed_boxes() -> dict[str, Any]:
    with gr.Column(elem_classes="df-figure-box df-whatif-box"):
        with gr.Row(elem_classes="df-whatif-row"):
            with gr.Column(elem_classes="df-side", scale=2, min_width=240):
                answer = gr.HTML(padding=False, elem_id="whatif-answer")
                sliders = [
                    gr.Slider(1, 16, 2, step=0.01, label="tau, tokens per forward", elem_id="whatif-tau", buttons=[])
                ]
                for part, words in zip(
                    _PARTS,
                    ("one token of the target alone", "drafting", "verifying", "the rest of a step"),
                    strict=True,
                ):
                    sliders.append(
                        gr.Slider(
                            0, 100, 10, step=0.1, label=f"t_{part}: {words}, ms", elem_id=f"whatif-{part}", buttons=[]
                        )
                    )
            with gr.Column(scale=5, min_width=300):
                plot = gr.Plot(show_label=False, container=False, elem_id="whatif")
                table = gr.HTML(padding=False)
    with gr.Row(elem_classes="df-sizes-head"):
        sentence = gr.HTML(padding=False, elem_id="best-size")
        measure = gr.Button("Measure this machine", elem_id="measure", min_width=190, scale=0)
    with gr.Row(elem_classes="df-figures", visible=False) as row:
        speeds, costs = _box("speeds"), _box("costs")
    sizes = [sentence, row, *speeds, *costs]
    return {"answer": answer, "sliders": sliders, "whatif": [plot, table], "sizes": sizes, "measure": measure}


def _box(name: str) -> list[gr.components.Component]:
    with gr.Column(elem_classes="df-figure-box"):
        return [gr.Plot(show_label=False, container=False, elem_id=name), gr.HTML(padding=False)]
