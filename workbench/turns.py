"""Whose turn it is to compute: one at a time, first come first served, and everyone sees their place.

Two decodings at once would spoil both timings. Gradio's own queue would also keep them apart, but says nothing while a
handler waits; so handlers that compute run without Gradio's limit and wait here:

    with bench_turns.ticket() as ticket:
        for ahead in ticket.waiting():       # nothing is yielded when it is our turn at once
            yield [show(place_in_words(ahead)), ...]
        ...                                  # compute; leaving the block, however it is left, lets the next one in

Closing the generator (Stop, a closed tab) gives the place up, whether it waits or computes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_AGAIN_SECONDS = 0.5  # a waiting generator comes back this often, so that Gradio can close it


class Turns:
    """A queue of everything that computes in this process."""

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []  # the first one computes
        self._changed = threading.Condition()

    @contextmanager
    def ticket(self) -> Iterator["Ticket"]:
        """A place at the end of the queue, given up at the end of the block."""
        mine = Ticket(self)
        with self._changed:
            self._waiting.append(mine)
        try:
            yield mine
        finally:
            with self._changed:
                self._waiting.remove(mine)
                self._changed.notify_all()

    def __len__(self) -> int:
        """How many compute or wait."""
        return len(self._waiting)

    def _ahead(self, ticket: "Ticket") -> int:
        return self._waiting.index(ticket)


class Ticket:
    """A place in the queue."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def waiting(self, look_again: float = _LOOK_AGAIN_SECONDS) -> Iterator[int]:
        """How many are ahead: at once, at every change and every `look_again` seconds; ends when it is our turn."""
        changed = self._turns._changed
        while True:
            with changed:
                if not (ahead := self._turns._ahead(self)):
                    return
            yield ahead
            with changed:
                changed.wait_for(lambda before=ahead: self._turns._ahead(self) != before, timeout=look_again)

    def wait(self) -> None:
        """The same for callers that have nobody to tell their place to (API endpoints)."""
        for _ in self.waiting():
            pass


def place_in_words(ahead: int) -> str:
    """What a waiting visitor reads."""
    others = "One computation is" if ahead == 1 else f"{ahead} computations are"
    return f"{others} ahead of this one: it starts by itself when its turn comes."


bench_turns = Turns()  # one machine, one queue: shared by all pages and all visitors
