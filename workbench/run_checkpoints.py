"""The checkpoints of a run as a reader sees them: what there is, which is the best, which cannot be used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.manifest import read_manifest


@dataclass(frozen=True)
class CheckpointRow:
    """One folder `step_*`. `problem` says in a sentence why it cannot be used, else it is empty."""

    name: str
    step: int | None
    best_loss: float | None  # lowest validation loss up to it
    is_best: bool
    size: int  # bytes
    problem: str


def checkpoints(run: Path) -> list[CheckpointRow]:
    """Newest first. Sizes are compared with the manifest; checksums are left to whoever loads one."""
    best = _read_object(run / "checkpoints" / "best.json").get("name")
    folders = sorted((run / "checkpoints").glob("step_*"), reverse=True)
    return [_row(folder, folder.name == best) for folder in folders if folder.is_dir()]


def _row(folder: Path, is_best: bool) -> CheckpointRow:
    record = _read_object(folder / "trainer.json")
    size, damage = _look_through(folder)
    if not damage and not isinstance(record.get("step"), int):
        damage = "trainer.json cannot be read"
    problem = f"Damaged ({damage}): remove this folder to resume from the one before it." if damage else ""
    return CheckpointRow(folder.name, record.get("step"), record.get("best_loss"), is_best, size, problem)


def _look_through(folder: Path) -> tuple[int, str]:
    """Bytes there are, and what is wrong with the first file that is not as it was written."""
    try:
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    except OSError as error:
        return 0, f"its files cannot be listed: {error.strerror}"
    total = sum(sizes.values())
    try:
        entries = read_manifest(folder / "manifest.json")
    except FileNotFoundError:
        return total, "" if "trainer.json" in sizes else "trainer.json is missing"  # versions without a manifest
    except (OSError, ValueError):
        return total, "manifest.json cannot be read"
    for name, entry in sorted(entries.items()):
        if name not in sizes:
            return total, f"{name} is missing"
        if sizes[name] != entry["size"]:
            return total, f"{name} has {sizes[name]:,} bytes instead of {entry['size']:,}"
    return total, ""


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
