"""Running a coroutine to its end from code that waits for it, whether or not its thread runs an event loop."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`; where this thread runs a loop already, as a notebook's does, in a thread of its own.

    An interrupt cancels the work, and is raised once that has ended.
    """
    if not _loop_runs_here():
        asyncio.run(work)
        return
    begun: Future[asyncio.Task[None]] = Future()

    async def noted() -> None:
        begun.set_result(asyncio.current_task())
        await work

    with ThreadPoolExecutor(1, "event-loop") as thread:
        ended = thread.submit(asyncio.run, noted())
        try:
            ended.result()
        finally:
            if not ended.done():  # interrupted
                task = begun.result()
                with suppress(RuntimeError):  # it ended meanwhile, and closed its loop
                    task.get_loop().call_soon_threadsafe(task.cancel)


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
