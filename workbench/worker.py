"""Work in a thread of its own that tells how far it is and can be given up at any report.

A generator that Gradio closes (Stop, a closed tab) can only end between two of its own steps, and `close()` runs in
the server's event loop. So long library calls run here: the generator only waits for reports, closing it returns at
once, and the work ends at its next report.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from workbench.turns import Turns, bench_turns

_LOOK_AGAIN_SECONDS = 0.25  # a generator that waits comes back this often, so that Gradio can close it


class GivenUp(BaseException):
    """Raised by a report after the listener has left. Not an Exception: nothing on the way should catch it."""


class Waiting(int):
    """A report that it is not this work's turn yet: how many are ahead."""


class Worker:
    """Runs `work(report)` when its turn to compute comes.

    Iterating starts it and yields the newest report whenever there is one (reports in between are left out), `Waiting`
    while others compute, and None when there is nothing new; `result` is there when the iteration has ended by itself.
    """

    def __init__(self, work: Callable[[Callable[[Any], None]], Any], turns: Turns = bench_turns) -> None:
        self.result: Any = None
        self._work, self._turns = work, turns
        self._fresh: list[Any] = []
        self._error: BaseException | None = None
        self._given_up = self._ended = False
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __iter__(self) -> Iterator[Any]:
        """
        Raises:
            whatever the work raised.
        """
        self.thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._fresh or self._ended, timeout=_LOOK_AGAIN_SECONDS)
                    fresh, self._fresh = self._fresh, []
                    ended = self._ended
                if fresh or not ended:
                    yield fresh[-1] if fresh else None
                if ended:
                    break
        finally:
            self._given_up = True
        if self._error is not None:
            raise self._error

    def _report(self, value: Any) -> None:
        if self._given_up:
            raise GivenUp
        with self._changed:
            self._fresh = [value]
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            with self._turns.ticket() as ticket:
                for ahead in ticket.waiting(_LOOK_AGAIN_SECONDS):
                    self._report(Waiting(ahead))
                self.result = self._work(self._report)
        except GivenUp:
            pass  # nobody is listening any more
        except BaseException as error:  # handed to whoever iterates
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
