"""Writing files so that nobody ever reads half of one."""

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
