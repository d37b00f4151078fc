"""The part of the Acceptance page that starts evaluations and follows them."""

import json
import time
from typing import Any

import gradio as gr

from dflash.errors import UserError
from workbench.components import packed, panel
from workbench.evaluate_jobs import EvaluateJobs, EvaluationRequest
from workbench.pages.acceptance_values import SIZE_VALUES, said, size_values

_POLL_SECONDS = 2.0
_READ = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


def controls(desk: EvaluateJobs) -> dict[str, gr.components.Component]:
    """What to evaluate, and the button."""
    names = desk.prompts.names()
    with gr.Column(elem_classes="df-evaluate"):
        draft = gr.Dropdown(
            desk.bench.drafts(),
            value=desk.bench.draft_name,
            allow_custom_value=True,
            label="Draft to evaluate",
            elem_id="eval-draft",
        )
        sets = gr.CheckboxGroup(names, value=names[:1], label="Prompt sets", elem_id="eval-sets")
        upload = gr.UploadButton("Add a prompt file (JSONL)", file_types=[".jsonl"], size="sm", elem_id="eval-upload")
        with gr.Row():
            limit = gr.Number(
                8, label="Prompts of each (0 = all)", precision=0, minimum=0, min_width=90, elem_id="eval-limit"
            )
            tokens = gr.Number(
                128, label="New tokens, at most", precision=0, minimum=1, min_width=90, elem_id="eval-tokens"
            )
        with gr.Accordion("More settings", open=False, elem_id="eval-more"):
            with gr.Row():
                size = gr.Number(
                    0,
                    label="Block size (0 = the draft's)",
                    precision=0,
                    minimum=0,
                    min_width=90,
                    elem_id="eval-block-size",
                )
                temperature = gr.Number(
                    0, label="Temperature (0 = greedy)", minimum=0, step=0.1, min_width=90, elem_id="eval-temperature"
                )
            gr.HTML('<p class="df-note">Sampled outputs are not compared with plain decoding.</p>', padding=False)
        start = gr.Button("Evaluate", variant="primary", elem_id="evaluate")
    return {
        "draft": draft,
        "sets": sets,
        "upload": upload,
        "limit": limit,
        "tokens": tokens,
        "size": size,
        "temperature": temperature,
        "start": start,
    }


def job_panel() -> gr.HTML:
    """Evaluations that wait, run, or ran."""
    return panel("evaluations", elem_id="evaluations")


def wire(
    desk: EvaluateJobs,
    demo: gr.Blocks,
    evaluating: dict[str, gr.components.Component],
    jobs: gr.HTML,
    chosen: dict[str, gr.components.Component],
    measure: gr.Button,
    sizes: list[gr.components.Component],
) -> None:
    """Buttons, uploads, and the clock that looks how far evaluations are; `chosen` offers new results as they come."""
    lists = [chosen["result"], chosen["with"]]

    numbers = [evaluating[name] for name in ("limit", "tokens", "size", "temperature")]

    def start(draft: str, sets: list[str], *values: float | None) -> str:
        def work() -> str:
            desk.evaluate(EvaluationRequest(draft, tuple(sets), *map(_given, numbers, values)))
            return job_view(desk)

        return said(work)

    def start_benchmark(draft: str) -> str:
        return said(lambda: (desk.benchmark(draft), job_view(desk))[1])

    def upload(path: str, ticked: list[str]) -> Any:
        name = said(lambda: desk.prompts.add(path))
        return gr.CheckboxGroup(choices=desk.prompts.names(), value=list(dict.fromkeys([*ticked, name])))

    def act(event: gr.EventData) -> str:
        return said(lambda: (desk.act(event.action, event.name), job_view(desk))[1])

    def news(shown: str | None, result: str | None, others: list[str]) -> list[Any]:
        fresh = _fresh(desk)
        before = json.loads(shown) if shown else {"jobs": [], "now": 0}
        if fresh["jobs"] == before["jobs"] and (not _active(fresh) or fresh["now"] - before["now"] < 10):
            return [gr.skip()] * (3 + SIZE_VALUES)
        finished = {row["name"] for row in fresh["jobs"] if row["state"] == "done"}
        finished -= {row["name"] for row in before["jobs"] if row["state"] == "done"}
        offered = _offered(desk, result, others) if finished else [gr.skip()] * 2
        measured = any(row["kind"] == "benchmark" for row in fresh["jobs"] if row["name"] in finished)
        return [packed(fresh), *offered, *(size_values(desk) if measured else [gr.skip()] * SIZE_VALUES)]

    inputs = [evaluating["draft"], evaluating["sets"], *numbers]
    evaluating["start"].click(start, inputs, jobs, trigger_mode="once", **_READ)
    measure.click(start_benchmark, evaluating["draft"], jobs, trigger_mode="once", **_READ)
    evaluating["upload"].upload(upload, [evaluating["upload"], evaluating["sets"]], evaluating["sets"], **_READ)
    jobs.submit(act, None, jobs, trigger_mode="multiple", **_READ).failure(lambda: job_view(desk), None, jobs, **_READ)
    demo.load(lambda: _opened(desk), None, [jobs, evaluating["draft"], evaluating["sets"]], **_READ)
    gr.Timer(_POLL_SECONDS).tick(news, [jobs, *lists], [jobs, *lists, *sizes], queue=False, **_READ)


def _given(field: gr.Number, value: float | None) -> float:
    """
    Raises:
        UserError: the field was emptied, which must not mean 0.
    """
    if value is None:
        raise UserError(f"The field {field.label!r} is empty: give a number.")
    return value


def job_view(desk: EvaluateJobs) -> str:
    """The value of the panel of evaluations."""
    return packed(_fresh(desk))


def _opened(desk: EvaluateJobs) -> list[Any]:
    """Jobs, drafts and prompt sets as they are when the page is opened."""
    names = desk.prompts.names()
    return [
        job_view(desk),
        gr.Dropdown(choices=desk.bench.drafts(), value=desk.bench.draft_name),
        gr.CheckboxGroup(choices=names, value=names[:1]),
    ]


def _fresh(desk: EvaluateJobs) -> dict[str, Any]:
    return {"jobs": desk.rows(), "now": time.time()}


def _active(view: dict[str, Any]) -> bool:
    return any(job["ended"] is None for job in view["jobs"])


def _offered(desk: EvaluateJobs, result: str | None, others: list[str]) -> list[Any]:
    names = list(dict.fromkeys([*desk.results.names(), *([result] if result else []), *others]))
    return [gr.Dropdown(choices=names, value=result), gr.Dropdown(choices=names, value=others)]
