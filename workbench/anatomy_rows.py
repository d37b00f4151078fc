"""From what a visitor gives (a built-in conversation, pasted lines, a dropped file) to the rows that training sees."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dflash.config import DataConfig
from dflash.data.conversations import Conversation
from dflash.data.load import Reject, load_conversations
from dflash.data.rows import Row, build_rows
from dflash.data.template import Rendered, render
from dflash.errors import UserError
from dflash.target import TargetModel
from workbench.examples import EXAMPLE_CONVERSATIONS

ROW_TOKENS = (128, 2048)  # of a row, at least and at most
MAX_FILE_BYTES = 20 << 20
MAX_CONVERSATIONS = 2_000


@dataclass(frozen=True)
class Rows:
    """Training rows, the lines that were left out with their reasons, and how many conversations were used."""

    rows: list[Row]
    rejects: list[Reject]
    conversations: int

    def row(self, number: int) -> Row:
        """Row `number`, from 1; a number that is too large takes the last one."""
        return self.rows[min(max(1, number), len(self.rows)) - 1]

    def complaints(self) -> list[str]:
        """One sentence for every line that was left out."""
        return [f"Line {reject.line} is left out: {reject.reason}." for reject in self.rejects]


def check_length(length: int) -> int:
    """A row's length in tokens, refused outside `ROW_TOKENS`."""
    low, high = ROW_TOKENS
    if not low <= length <= high:
        raise UserError(f"Row length {length} must lie between {low} and {high} tokens.")
    return length


def built_in_rows(target: TargetModel, name: str, *, packing: bool, length: int) -> Rows:
    """Rows of a built-in conversation; packed, all of them stand behind one another, repeated until the row is full.

    Raises:
        UserError: no such conversation, or it cannot be rendered.
    """
    if name not in EXAMPLE_CONVERSATIONS:
        raise UserError(f"There is no built-in conversation {name!r}: choose {', '.join(EXAMPLE_CONVERSATIONS)}.")
    limit = min(check_length(length), target.max_length)

    def rendered(name: str) -> Rendered:
        return render(Conversation(name, EXAMPLE_CONVERSATIONS[name]), target.tokenizer, max_length=limit)

    if not packing:
        return Rows(build_rows([rendered(name)], max_length=limit, packing=False), [], 1)
    # The chosen one comes first, so that it is the row's first document.
    items = [rendered(name), *(rendered(other) for other in EXAMPLE_CONVERSATIONS if other != name)]
    chosen: list[Rendered] = []
    room, before = length, -1
    while len(chosen) > before:
        before = len(chosen)
        for item in items:
            if len(item.input_ids) <= room:
                chosen.append(replace(item, id=f"{item.id} ({len(chosen) + 1})"))
                room -= len(item.input_ids)
    return Rows(build_rows(chosen, max_length=length, packing=True), [], len(chosen))


def text_rows(target: TargetModel, text: str, *, packing: bool, length: int) -> Rows:
    """Rows of pasted JSON lines. Raises as `file_rows` does."""
    if not text.strip():
        raise UserError("No conversation yet: paste one JSON line with a `messages` list, or drop a JSONL file.")
    name = "The pasted text"
    if len(text) > MAX_FILE_BYTES:  # before it fills the disk; `file_rows` counts bytes
        raise _too_large(name)
    with _as_file(text) as path:
        return file_rows(target, path, packing=packing, length=length, name=name)


def file_rows(target: TargetModel, path: Path, *, packing: bool, length: int, name: str = "") -> Rows:
    """Rows of a JSONL file, read and judged as `dflash train` does it; `name` stands for it in complaints.

    Raises:
        UserError: the file is too large, cannot be read, or nothing in it can be learned from.
    """
    name = name or path.name
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _too_large(name)
    limit = min(check_length(length), target.max_length)
    config = DataConfig(train=[str(path)], max_length=limit, packing=packing, limit=MAX_CONVERSATIONS)
    try:
        loaded = load_conversations(config, target.tokenizer)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error
    if not loaded.rendered:
        first = loaded.rejects[0]
        raise UserError(f"Nothing in {name} can be learned from: line {first.line} is left out, {first.reason}.")
    rows = build_rows(loaded.rendered, max_length=length if packing else limit, packing=packing)
    return Rows(rows, loaded.rejects, len(loaded.rendered))


def _too_large(name: str) -> UserError:
    return UserError(f"{name} has more than {MAX_FILE_BYTES >> 20} MB: give fewer conversations.")


@contextmanager
def _as_file(text: str) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield Path(file.name)
