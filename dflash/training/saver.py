"""Saving in a thread while training goes on: one save at a time, and no error is lost."""

import logging
import threading
from collections.abc import Callable

_LOG = logging.getLogger(__name__)


class BackgroundSaver:
    """Runs one job at a time in a thread; `wait` returns when it is done and raises what it raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the last job has ended with an error that nobody has been told of yet."""
        return self._error is not None

    def submit(self, job: Callable[[], object]) -> None:
        """Start a job, behind the one before it; raises what that one raised."""
        self.wait()
        # No daemon: the process does not end in the middle of a checkpoint.
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Let the job end on the way out of a run that has failed; its error is logged beside that one's."""
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - logged; the error that is under way is the one to raise
            _LOG.error("The checkpoint under way was not completed: %s", error)

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
