"""Values for the Acceptance page's components that several of its modules hand out."""

import html
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from dflash.errors import UserError
from workbench import speed_view
from workbench.acceptance_view import Figure
from workbench.components import refusal
from workbench.evaluate_jobs import EvaluateJobs

Value = TypeVar("Value")
SIZE_VALUES = 6


def figure_values(figure: Figure | None) -> list[Any]:
    """A plot, hidden where there is none, and the table behind it or the words in its place."""
    plot, table = figure or (None, "")
    return [gr.update(value=plot, visible=plot is not None), table]


def size_values(desk: EvaluateJobs) -> list[Any]:
    """Sentence, row of figures, and both figures of the block sizes; `SIZE_VALUES` in all."""
    try:
        sentence, speeds, costs = speed_view.block_sizes(desk.results.block_sizes())
    except UserError as error:  # a damaged measurement must not take the rest of the page along
        sentence, speeds, costs = html.escape(str(error)), None, None
    said = f'<p class="df-answer df-small">{sentence}</p>'
    return [said, gr.update(visible=speeds is not None), *figure_values(speeds), *figure_values(costs)]


def said(work: Callable[[], Value]) -> Value:
    """What `work` returns; a mistake is shown as its sentence.

    Raises:
        gr.Error: the sentence of a UserError.
    """
    try:
        return work()
    except UserError as error:
        raise refusal(error) from error
