"""The prompt sets an evaluation can choose from: dflash's own examples, and files below the runs folder."""

import re
import shutil
from pathlib import Path

from dflash.errors import UserError
from dflash.evaluation.prompt_sets import EXAMPLE_SET, read_sets

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LARGEST = 32 << 20  # bytes


class PromptStore:
    """Prompt sets by name; files live in `<runs>/.prompts/NAME.jsonl`, where people may also put them by hand."""

    def __init__(self, runs: Path) -> None:
        self.folder = Path(runs).absolute() / ".prompts"

    def names(self) -> list[str]:
        """The examples first, then the files in alphabetical order."""
        own = sorted(path.stem for path in self.folder.glob("*.jsonl") if _NAME.fullmatch(path.stem))
        return [EXAMPLE_SET.stem, *(name for name in own if name != EXAMPLE_SET.stem)]

    def path(self, name: str) -> Path:
        """The file of a set.

        Raises:
            UserError: the name is no plain name, leads out of the folder, or there is no such set.
        """
        if name == EXAMPLE_SET.stem:
            return EXAMPLE_SET
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"Prompt set {str(name)[:100]!r} is no plain name: use letters, digits, '-', '_' and '.'.")
        path = self.folder / f"{name}.jsonl"
        if path.resolve().parent != self.folder.resolve():
            raise UserError(f"Prompt set {name!r} lies outside of {self.folder}: copy it there.")
        if not path.is_file():
            raise UserError(f"There is no prompt set {name!r}: drop its file, or put it into {self.folder}.")
        return path

    def size(self, name: str) -> int:
        """Prompts in a set.

        Raises:
            UserError: as `path`, or the file is damaged.
        """
        return len(read_sets([self.path(name)]))

    def add(self, file: Path | str) -> str:
        """Take in a copy of a JSONL file of prompts; returns the set's name.

        Raises:
            UserError: it is too large, no prompt file, its name is no plain name, or another set has that name.
        """
        file = Path(file)
        if not _NAME.fullmatch(file.stem) or file.stem == EXAMPLE_SET.stem:
            raise UserError(
                f"{file.name!r} cannot name a prompt set: rename it, with letters, digits, '-' and '_' only."
            )
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file.name} is larger than 32 MiB: split it, an evaluation of it would take days.")
        try:
            read_sets([file])
        except UserError as error:
            # Where the upload lies on disk says nothing to whoever dropped it.
            raise UserError(str(error).replace(str(file), file.name)) from error
        place = self.folder / f"{file.stem}.jsonl"
        if place.exists() and place.read_bytes() != file.read_bytes():
            raise UserError(
                f"There is another prompt set {file.stem!r} already: rename the file, results are named after it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        return file.stem
