"""Whatever goes wrong while a page or an endpoint computes, as one sentence for whoever asked."""

import logging
import re

from dflash.errors import UserError

_LOG = logging.getLogger(__name__)
# Python's own, torch's on a GPU and torch's on the CPU, which is a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|out of memory|can't allocate memory|Cannot allocate memory")
_MOST_CHARACTERS = 200  # of an error's own words: CUDA's go on for a page


def sentence_of(error: Exception) -> str:
    """A user's mistake in its own words; anything else by its kind, with its traceback in the server's log."""
    if isinstance(error, UserError):
        return str(error)
    _LOG.error("A computation of the workbench failed.", exc_info=error)
    kind, words = type(error).__name__, " ".join(str(error).split())
    if _OUT_OF_MEMORY.search(f"{kind}: {words}"):
        where = "The GPU" if "CUDA" in words or "HIP" in words else "The machine"
        return (
            f"{where} ran out of memory ({kind}): ask for less (fewer tokens, a shorter prompt, a smaller draft or "
            "target), or end other programs first."
        )
    said = f": {words[:_MOST_CHARACTERS]}" if words else ""
    return (
        f"This failed for a reason that is not yours ({kind}{said}): try again, and if it comes back, report it with "
        "the traceback in the server's log."
    )
