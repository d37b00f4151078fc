"""The Train page: a config edited field by field, what it amounts to, and the jobs that come of it."""

import hashlib
import json
import time
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from dflash.recipes import shipped_recipes
from workbench.bench import Bench
from workbench.components import as_text, packed, panel, refusal, table_behind
from workbench.figures.train_plan import learning_rate_curve, memory_bars, rate_points
from workbench.form import about_origin, form_view, origins
from workbench.pages.train_api import add_endpoints
from workbench.plan_view import capacity_of, launch_view, place_of, plan_view
from workbench.run_request import Prepared, RunRequest, prepare
from workbench.train_jobs import TrainJobs

QUICK = "smollm2-135m-quick"  # runs everywhere once its data is there
_POLL_SECONDS = 2.0
_READ = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


def build(bench: Bench, demo: gr.Blocks) -> None:
    """Lay out the page inside the open Blocks and wire it."""
    desk = TrainJobs(bench.runs)
    with gr.Column(elem_classes="df-train-page"):
        launch = panel("train_launch", elem_id="launch")
        jobs = panel("train_jobs", elem_id="jobs")
        with gr.Row(elem_classes="df-train-grid"):
            form = panel("train_form", elem_id="settings")
            with gr.Column(elem_classes="df-train-right"):
                plan = panel("train_plan", elem_id="plan")
                with gr.Column(elem_classes="df-figure-box"):
                    rates = gr.Plot(show_label=False, container=False, elem_id="rates")
                    rates_table = gr.HTML(padding=False)
                with gr.Column(elem_classes="df-figure-box"):
                    memory = gr.Plot(show_label=False, container=False, elem_id="memory")
                    memory_table = gr.HTML(padding=False)
    planned = [launch, form, plan, rates, rates_table, memory, memory_table]

    def opened(request: gr.Request) -> list[Any]:
        first = first_request(bench)
        try:
            return [*views(desk, RunRequest.from_query(dict(request.query_params), first)), job_view(desk)]
        except UserError as error:
            gr.Warning(as_text(str(error)))  # a link to a run that is gone still opens the page
            return [*views(desk, first), job_view(desk)]

    def edited(event: gr.EventData) -> list[Any]:
        request = RunRequest.from_json(event.request)
        return _said(lambda: views(desk, request, event.request.get("serial"), event.figures))

    def acted(event: gr.EventData) -> list[Any]:
        return _said(lambda: [*act(desk, event.action, RunRequest.from_json(event.request)), job_view(desk)])

    def job_acted(event: gr.EventData) -> str:
        _said(lambda: act_on_job(desk, event.action, event.name))
        return job_view(desk)

    demo.load(opened, None, [*planned, jobs], **_READ)
    changed = launch.input(edited, None, planned, trigger_mode="always_last", **_READ)
    changed.failure(None, None, None, js=_REFUSED, api_visibility="private")
    launch.submit(acted, None, [*planned, jobs], trigger_mode="once", **_READ).failure(
        lambda: job_view(desk), None, jobs, js=_ASK_AGAIN, **_READ
    )
    pressed = jobs.submit(job_acted, None, jobs, trigger_mode="multiple", **_READ)
    pressed.failure(lambda: job_view(desk), None, jobs, **_READ)
    gr.Timer(_POLL_SECONDS).tick(lambda shown: _news(desk, shown), jobs, jobs, queue=False, **_READ)
    add_endpoints(desk)


# After a refusal the buttons come back with a new plan.
_ASK_AGAIN = "() => window.dispatchEvent(new CustomEvent('dflash:ask-again'))"
_REFUSED = "() => window.dispatchEvent(new CustomEvent('dflash:refused'))"


def first_request(bench: Bench) -> RunRequest:
    """What the page opens with: the quick recipe, for the target that the workbench was started with."""
    recipes = shipped_recipes()
    origin = QUICK if QUICK in recipes else next(iter(recipes), "")
    return RunRequest(origin, {} if bench.target_name == EMBEDDED_NAME else {"target.name": bench.target_name})


def views(desk: TrainJobs, request: RunRequest, serial: int | None = None, shown: str | None = None) -> list[Any]:
    """Values of launch, form, plan, and each figure with its table, all from one prepared run.

    `shown` tells which figures the page has: the same ones are not sent again, since drawing them makes typing wait.

    Raises:
        UserError: there is no such recipe or run.
    """
    prepared = prepare(request, desk.runs)
    busy = any(job.state == "running" for job in desk.jobs.list())
    choices, about = origins(desk.runs.names()), about_origin(prepared)
    launch = launch_view(prepared, choices, about, busy=busy, data_follows=desk.data_follows(prepared))
    if serial is not None:
        launch["request"]["serial"] = serial
    figures = figure_values(prepared)
    launch["figures"] = _digest(figures)
    if launch["figures"] == shown:
        figures = [gr.skip()] * len(figures)
    return [packed(launch), packed(form_view(prepared)), packed(plan_view(prepared)), *figures]


def figure_values(prepared: Prepared) -> list[Any]:
    """Learning rates and memory, each as figure and table; words in place of a figure that cannot be drawn yet."""
    numbers = prepared.plan.estimate
    values: list[Any] = [None, _words("The learning rate follows the steps, which hang on data that is counted later.")]
    if numbers.steps is not None:
        points = rate_points(prepared.plan.config, numbers.steps, numbers.rates)
        rows = [[point.name, f"{point.step:,}", f"{point.rate:.3g}"] for point in numbers.rates]
        values = [learning_rate_curve(points, numbers.rates), table_behind("Table", ["", "step", "rate"], rows)]
    if not numbers.memory:
        return [*values, None, _words("Nothing is known about this target yet: its memory cannot be estimated.")]
    place = place_of(prepared)
    parts = sorted(numbers.memory, key=lambda part: -part.bytes)
    rows = [[part.name, "host" if part.on_host else place, f"{part.bytes / 2**20:,.1f}"] for part in parts]
    rows.append(["all", "", f"{sum(part.bytes for part in parts) / 2**20:,.1f}"])
    return [
        *values,
        memory_bars(parts, place, capacity_of(prepared)),
        table_behind("Table", ["what", "where", "MiB"], rows),
    ]


def act(desk: TrainJobs, action: str, request: RunRequest) -> list[Any]:
    """Start or queue a request; returns the views of the next one.

    Raises:
        UserError: it cannot be started, or there is no such action.
    """
    prepared = prepare(request, desk.runs)
    if action == "make_data":
        desk.begin_with_data(prepared)
    elif action in ("start", "queue"):
        desk.begin(prepared, queued=action == "queue")
    else:
        raise UserError(f"There is no action {action!r}: reload the page.")
    # The name is taken now: the next run gets one of its own.
    return views(desk, RunRequest(request.origin, request.settings, "", request.ranks))


def act_on_job(desk: TrainJobs, action: str, name: str) -> None:
    """Stop, kill, resume, queue to be resumed, or abort a job.

    Raises:
        UserError: the job is not in a state for it, or there is no such action.
    """
    actions = {
        "stop": lambda: desk.stop(name),
        "kill": lambda: desk.stop(name, grace=0),
        "resume": lambda: desk.resume(name),
        "queue": lambda: desk.resume(name, queued=True),
        "abort": lambda: desk.jobs.abort(name),
    }
    if action not in actions:
        raise UserError(f"There is no action {action!r}: reload the page.")
    actions[action]()


def job_view(desk: TrainJobs) -> str:
    """The value of the panel of jobs."""
    return packed({"jobs": desk.rows(), "now": time.time()})


def _news(desk: TrainJobs, shown: str | None) -> Any:
    """Nothing where nothing has changed: times alone are told every now and then."""
    fresh = {"jobs": desk.rows(), "now": time.time()}
    known = json.loads(shown) if shown else {"jobs": None, "now": 0}
    same = fresh["jobs"] == known["jobs"]
    return gr.skip() if same and (not _active(fresh) or fresh["now"] - known["now"] < 10) else packed(fresh)


def _active(view: dict[str, Any]) -> bool:
    return any(job["ended"] is None for job in view["jobs"])


def _said(work) -> Any:
    """Mistakes are shown as their sentence."""
    try:
        return work()
    except UserError as error:
        raise refusal(error) from error


def _digest(figures: list[Any]) -> str:
    """Equal for figures and tables that look the same."""
    texts = (value.to_json() if isinstance(value, go.Figure) else str(value) for value in figures)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _words(text: str) -> str:
    return f'<p class="df-note">{text}</p>'
