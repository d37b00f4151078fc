"""The result of `dflash benchmark` as a file, read back typed. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from dflash.evaluation.speedup import StepCost

FORMAT = 1
KIND = "block sizes"


@dataclass(frozen=True)
class SizeRow:
    """One block size: what a step costs, what it yields, and the speed-up that was measured (median of the pairs)."""

    block_size: int
    cost: StepCost
    steps: int
    tau: float
    speedup: float
    speedup_range: tuple[float, float]


@dataclass(frozen=True)
class BlockSizes:
    """All block sizes measured in one run on one machine; times in milliseconds."""

    draft_name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: tuple[SizeRow, ...]

    @property
    def best(self) -> SizeRow:
        """The block size of the highest measured speed-up."""
        return max(self.rows, key=lambda row: row.speedup)


def read_block_sizes(path: Path | str) -> BlockSizes:
    """The result file at `path`.

    Raises:
        UserError: it cannot be read, or is no such result.
    """
    try:
        return parse_block_sizes(json.loads(Path(path).read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON file: measure again with `dflash benchmark --json`.") from error


def parse_block_sizes(record: Any, where: str) -> BlockSizes:
    """Block sizes from their JSON form, less those at which nothing was decoded; `where` names it in complaints.

    Raises:
        UserError: the record is damaged, of a newer format, or of another kind.
    """
    try:
        if record["kind"] != KIND:
            raise UserError(f"{where} is no result of `dflash benchmark`: measure again.")
        if record["format"] != FORMAT:
            raise UserError(
                f"{where} has format {record['format']!r}, this version reads {FORMAT}: update the workbench."
            )
        rows = tuple(_row(row, record["target_ms"]) for row in record["sizes"] if row["speedup"] is not None)
        if not rows:
            raise UserError(f"{where} holds no block size at which anything was decoded: measure again.")
        name = record.get("draft_name") or record["settings"]["draft"]
        return BlockSizes(name, dict(record["settings"]), dict(record["machine"]), rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is no result of `dflash benchmark` ({error!r}): measure again.") from error


def _row(row: dict[str, Any], target_ms: float) -> SizeRow:
    cost = StepCost(target_ms, row["draft_ms"], row["verify_ms"], row["overhead_ms"])
    low, high = row["speedup_range"]
    return SizeRow(
        int(row["block_size"]), cost, int(row["steps"]), float(row["tau"]), float(row["speedup"]), (low, high)
    )
