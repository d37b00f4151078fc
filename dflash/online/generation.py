"""Names of what a run puts into the store, so that whatever it leaves there can be found again."""

import uuid
from pathlib import Path

from dflash.files import write_atomically
from dflash.online.store import key_prefix

_FILE = ".store_id"


def run_id(run_dir: Path) -> str:
    """The run's own part of all its keys: drawn once, kept in its folder."""
    path = run_dir / _FILE
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def run_prefix(run_dir: Path) -> str:
    """Start of all keys of a run, whichever sitting and rank they belong to."""
    return key_prefix(run_id(run_dir))


def new_generation() -> str:
    """One sitting of a run: answers to requests of an earlier one may still come in."""
    return uuid.uuid4().hex[:12]


def rank_prefix(run: str, generation: str, rank: int) -> str:
    """Start of the keys of one rank."""
    return key_prefix(run, generation, f"rank{rank}")
