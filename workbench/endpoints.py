"""Named endpoints that compute: each waits for its turn, and ends when its client cancels it or goes away."""

import inspect
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

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
