"""Prompt sets: the files an evaluation reads, and what each prompt counts as. Needs no torch."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dflash.data.conversations import Prompt, read_prompts
from dflash.errors import UserError

# A few prompts of our own, so that something can be measured on a fresh machine.
EXAMPLE_SET = Path(__file__).resolve().parent.parent / "assets" / "prompts" / "examples.jsonl"

LANGUAGE_RULE = (
    "a prompt's language is its `language` field; without one, the script that most letters of its turns are written in"
)
CATEGORY_RULE = "a prompt's category is its `category` field; without one, the name of its file"


def read_sets(files: Sequence[Path], limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts (None: all) of each file; a set is named after its file.

    Category and language are filled in by `CATEGORY_RULE` and `LANGUAGE_RULE`.

    Raises:
        UserError: a file cannot be read, two files or two prompts of a file share a name.
    """
    names = [file.stem for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two prompt files are called {twice!r}: rename one, since sets are named after their files.")
    prompts = [labelled(prompt) for file in files for prompt in read_prompts(file, limit)]
    check_ids(prompts)
    return prompts


def labelled(prompt: Prompt) -> Prompt:
    """The prompt with category and language filled in by the rules above."""
    return replace(
        prompt,
        category=prompt.category or prompt.set,
        language=prompt.language or script_of(" ".join(prompt.turns)),
    )


def check_ids(prompts: Sequence[Prompt]) -> None:
    """Refuse two prompts that results could not tell apart.

    Raises:
        UserError: two prompts of one set share an id.
    """
    seen: set[tuple[str, str]] = set()
    for prompt in prompts:
        if (prompt.set, prompt.id) in seen:
            where = f" of set {prompt.set!r}" if prompt.set else ""
            raise UserError(f"Two prompts{where} have the id {prompt.id!r}: give each its own.")
        seen.add((prompt.set, prompt.id))


def script_of(text: str) -> str:
    """The script most letters are written in, by their Unicode names: "Latin script", "Cyrillic script", ...

    Chinese, Japanese and Korean letters are one script here, since a Japanese text mixes three; "no letters" if none.
    """
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    return f"{scripts.most_common(1)[0][0]} script" if scripts else "no letters"


def _script(letter: str) -> str:
    first = unicodedata.name(letter, "unnamed").split()[0].split("-")[0]
    return "CJK" if first in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL") else first.capitalize()
