"""SIGTERM, SIGINT and SIGHUP as a count that a loop looks at, instead of an exception in the middle of something."""

from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal, signal


class StopRequests:
    """Counts the signals that arrive while it is entered, in the main thread; ignored ones stay so (nohup)."""

    def __init__(self) -> None:
        self.count = 0
        self._previous = {}

    def __enter__(self) -> "StopRequests":
        heeded = [number for number in (SIGTERM, SIGINT, SIGHUP) if getsignal(number) != SIG_IGN]
        self._previous = {number: signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_exception) -> None:
        for number, handler in self._previous.items():
            signal(number, handler)

    def _note(self, _signal, _frame) -> None:
        self.count += 1
