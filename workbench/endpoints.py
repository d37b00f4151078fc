"""Named endpoints: their arguments are checked, and one that computes ends when its client cancels it or goes away."""

import inspect
import reprlib
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, get_type_hints

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from workbench.sentences import sentence_of
from workbench.worker import Worker

# Between two signs of life: messages in between would only cost the machine that is being timed.
_SIGN_SECONDS = 0.25


def computing(endpoint: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """`endpoint(report, ...)` as a function for `gr.api` with the rest of its arguments.

    It runs in a `Worker`; whatever `report` is given only says that it goes on, and ends it there once nobody waits
    for it any more. A generator, because Gradio ends nothing else early: None now and then, then the result, which is
    what `predict` returns.
    """
    signature = inspect.signature(endpoint)

    @wraps(endpoint)
    def running(*args, **options) -> Iterator[Any]:
        yield None  # Gradio knows a generator, and closes it, only from its first value on
        worker = Worker(lambda report: endpoint(report, *args, **options))
        seen = time.monotonic()
        try:
            for _ in worker:
                if time.monotonic() - seen >= _SIGN_SECONDS:
                    yield None
                    seen = time.monotonic()
        except Exception as error:
            raise gr.Error(sentence_of(error), print_exception=False) from error
        yield worker.result

    running.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return running


def register(endpoint: Callable[..., Any], name: str = "") -> None:
    """Give the app this endpoint, under its function's name unless told otherwise."""
    gr.api(typed(endpoint), api_name=name or endpoint.__name__, concurrency_limit=None)


def typed(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, refusing arguments that are not of the annotated types in a sentence that names the first one."""
    signature, hints = inspect.signature(endpoint), get_type_hints(endpoint)

    def checked(args: tuple, options: dict[str, Any]) -> inspect.BoundArguments:
        bound = signature.bind(*args, **options)
        for name, value in bound.arguments.items():
            hint = hints.get(name, Any)
            try:
                bound.arguments[name] = TypeAdapter(hint).validate_python(value)
            except ValidationError as error:
                wanted = inspect.formatannotation(hint)
                sentence = f"Argument {name} = {reprlib.repr(value)} is not usable: give a value of type {wanted}."
                raise gr.Error(sentence, print_exception=False) from error
        return bound

    @wraps(endpoint)
    def plain(*args, **options) -> Any:
        bound = checked(args, options)
        return endpoint(*bound.args, **bound.kwargs)

    @wraps(endpoint)
    def running(*args, **options) -> Iterator[Any]:
        bound = checked(args, options)
        yield from endpoint(*bound.args, **bound.kwargs)

    return running if inspect.isgeneratorfunction(endpoint) else plain  # Gradio tells the two apart
