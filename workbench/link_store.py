"""What can be opened again by link: JSON files below the runs folder, named by their content."""

import hashlib
import re
from pathlib import Path

from dflash.errors import UserError
from dflash.files import write_atomically

_ID = re.compile(r"[0-9a-f]{24}")
MAX_BYTES = 8 << 20  # of one entry
MAX_ENTRIES = 2_000
MAX_TOTAL = 1 << 30  # bytes of all entries


class LinkStore:
    """Texts kept in one folder. The same text always gets the same id, so saving twice keeps one file.

    A store that is full refuses: what is there was promised to stay, since somebody may hold its link.
    """

    def __init__(
        self,
        folder: Path,
        noun: str,
        *,
        max_bytes: int = MAX_BYTES,
        max_entries: int = MAX_ENTRIES,
        max_total: int = MAX_TOTAL,
    ) -> None:
        """`noun` names an entry in complaints ("trace"); `max_bytes` is for one entry, `max_total` for all of them."""
        self.folder, self.noun = folder, noun
        self.max_bytes, self.max_entries, self.max_total = max_bytes, max_entries, max_total

    def save(self, text: str) -> str:
        """Keep a text; returns its id.

        Raises:
            UserError: it is too large, the store is full or the folder cannot be written.
        """
        content = text.encode("utf-8")
        if (kept := self.find(text)) is not None:
            return kept
        if len(content) > self.max_bytes:
            raise UserError(
                f"This {self.noun} has {len(content):,} bytes, more than the {self.max_bytes:,} that can be kept for a "
                "link: keep a smaller one."
            )
        name = _name_of(text)
        path = self.folder / f"{name}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_room(len(content))
            write_atomically(path, text)
        except OSError as error:
            raise UserError(
                f"The {self.noun} could not be kept in {self.folder}: {error.strerror}; make room there or let the "
                "workbench write to it, then save again."
            ) from error
        return name

    def find(self, text: str) -> str | None:
        """The id of a text that is kept already; None where it is not."""
        name = _name_of(text)
        return name if (self.folder / f"{name}.json").is_file() else None

    def _check_room(self, more: int) -> None:
        """
        Raises:
            UserError: the folder may not hold one more entry, or not `more` bytes.
        """
        sizes = [entry.stat().st_size for entry in self.folder.glob("*.json")]
        if len(sizes) >= self.max_entries:
            full = f"{self.max_entries:,} saved files"
        elif sum(sizes) + more > self.max_total:
            full = f"{sum(sizes):,} bytes, and no more than {self.max_total:,} may be kept"
        else:
            return
        raise UserError(
            f"{self.folder} is full ({full}): delete files there that no link needs any more, then save again."
        )

    def open(self, name: str) -> str:
        """The text of an id.

        Raises:
            UserError: no such id is possible, or nothing readable is there.
        """
        if not _ID.fullmatch(name):
            raise UserError(f"{name[:40]!r} names no saved {self.noun}: take the whole link that saving gave.")
        path = self.folder / f"{name}.json"
        # The id cannot leave the folder; a link put there by somebody else could.
        if path.is_symlink() or not path.is_file():
            raise UserError(f"The saved {self.noun} {name} is not here any more: it was deleted, or kept elsewhere.")
        if path.stat().st_size > self.max_bytes:
            raise UserError(f"The saved {self.noun} {name} is too large to be one: it was changed after saving.")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The saved {self.noun} {name} cannot be read: it is damaged.") from error


def _name_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]
