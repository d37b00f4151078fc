"""What people write down about a run: notes and tags, kept in its folder."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from dflash.errors import UserError
from dflash.files import locked, write_atomically

FILE = "notes.json"
MOST_CHARACTERS = 20_000
MOST_TAGS = 12
_TAG = re.compile(r"[^\s,]{1,40}")


@dataclass(frozen=True)
class Notes:
    """`version` tells a text from every other one, so that nobody overwrites what they have not seen."""

    text: str = ""
    tags: tuple[str, ...] = ()
    problem: str = ""  # a sentence, where the file could not be read

    @property
    def version(self) -> str:
        return hashlib.sha256(json.dumps([self.text, self.tags]).encode()).hexdigest()[:16]


def read_notes(run: Path) -> Notes:
    """Empty where nothing was written; a damaged file is said to be so."""
    try:
        record = json.loads((run / FILE).read_text(encoding="utf-8"))
        return Notes(str(record["text"]), tuple(str(tag) for tag in record["tags"]))
    except FileNotFoundError:
        return Notes()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Notes(problem=f"{FILE} of this run could not be read: saving notes replaces it.")


def write_notes(run: Path, text: str, tags: str, seen: str | None = None) -> Notes:
    """Replace the notes of a run. `tags` are separated by spaces or commas; `seen` is the version they replace.

    Raises:
        UserError: too long, or somebody else changed them meanwhile, or the folder cannot be written.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"The notes have {len(text):,} characters: {MOST_CHARACTERS:,} are kept, shorten them.")
    words = list(dict.fromkeys(word for word in re.split(r"[\s,]+", tags) if word))
    if len(words) > MOST_TAGS or not all(_TAG.fullmatch(word) for word in words):
        raise UserError(f"Tags are up to {MOST_TAGS} words of up to 40 characters: give fewer or shorter ones.")
    notes = Notes(text, tuple(words))
    record = json.dumps({"text": text, "tags": words}, ensure_ascii=False, indent=2) + "\n"
    try:
        with locked(run / f".{FILE}.lock"):  # between the look and the writing nobody else writes
            if seen is not None and read_notes(run).version != seen:
                raise UserError(
                    "These notes were changed elsewhere meanwhile: copy your text, reload the page and add it again."
                )
            write_atomically(run / FILE, record)
    except OSError as error:
        raise UserError(f"The notes could not be written to {run} ({error.strerror}): they are not saved.") from error
    return notes
