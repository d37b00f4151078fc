"""The workbench's own components: static markup that scripts fill in when the value changes.

No template contains a value: token texts travel as data and reach the page as text nodes, so nothing in them is ever
read as HTML, and the page keeps scroll position, focus and selection when new data arrives.
"""

import html
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr

from dflash.errors import UserError
from workbench.theme import static_text

_Answer = TypeVar("_Answer")


def packed(value: Any) -> str:
    """A panel's value as it travels. As an object, Gradio would watch every field of it, which is slow for long traces."""
    # "<" is written as an escape, so that Gradio does not mistake a token for a script.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def as_text(sentence: str) -> str:
    """A sentence for Gradio's messages, which take HTML: a link could name a picture on another machine."""
    return html.escape(sentence, quote=False)


def refusal(error: UserError) -> gr.Error:
    """A user's mistake as the message that Gradio shows."""
    return gr.Error(as_text(str(error)), print_exception=False)


def asked(question: Callable[[], _Answer]) -> _Answer:
    """The answer, or its complaint as a sentence on the page."""
    try:
        return question()
    except UserError as error:
        raise refusal(error) from error


def panel(name: str, value: Any = None, *, scripts: Sequence[str] = (), **options) -> gr.HTML:
    """The component whose markup and script are `static/<name>.html` and `static/<name>.js`.

    `scripts` names files of `static/` that its script builds on: they are put before it.
    """
    return gr.HTML(
        value=None if value is None else packed(value),
        html_template=static_text(f"{name}.html"),
        js_on_load="\n".join(static_text(f"{script}.js") for script in (*scripts, name)),
        apply_default_css=False,
        padding=False,
        **options,
    )


def top_bar(current: str, pages: dict[str, str], machine: str) -> gr.HTML:
    """Name, navigation, what runs here, and the switch between dark and light."""
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if name == current else ""}>{html.escape(name)}</a>'
        for name, path in pages.items()
    )
    markup = (
        '<header class="df-bar-top"><span class="df-name">DFlash<span> Workbench</span></span>'
        f'<nav aria-label="Pages">{links}</nav><span class="df-machine" title="{html.escape(machine)}">'
        f'{html.escape(machine)}</span><button type="button" class="df-button df-theme">Theme</button></header>'
    )
    return gr.HTML(
        html_template=markup.replace("{{", "").replace("${", ""),
        js_on_load=static_text("top_bar.js"),
        apply_default_css=False,
        padding=False,
    )


def table_behind(title: str, columns: list[str], rows: list[list[Any]]) -> str:
    """A collapsed table of a figure's data as HTML."""
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<details class="df-table"><summary>{html.escape(title)}</summary><div class="df-scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )
