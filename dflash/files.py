"""Writing files so that nobody ever reads half of one, and one writer at a time."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name that the user knows into every OSError raised within.

    A write to a full disk names no file at all, and other errors may name one that only staged the work.
    """
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, which is made with its folder where it is missing; the lock goes with the process, however
    that ends. Threads of one process keep one another out as well.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is false.
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a crash never sees half of it.

    Raises:
        OSError: the folder does not exist, cannot be written or is full; the file is as it was before.
    """
    # Of this thread alone: two visitors of a server may save the same notes at once.
    staging = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with naming(path):
            with open(staging, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
