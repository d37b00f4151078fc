"""A training rank that the launcher started: it ends with torchrun, and writes to a log of its own."""

import os
from collections.abc import Mapping
from pathlib import Path

from dflash.online import tether

VARIABLE = "DFLASH_LOGS"  # folder of the ranks' logs


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank that the launcher started."""
    return VARIABLE in environment


def enter_rank(environment: Mapping[str, str] = os.environ) -> None:
    """Tie this process to torchrun, which puts each rank into a session of its own, and redirect its output.

    Killing torchrun would otherwise leave its ranks behind, waiting for one another.
    """
    tether.tie(int(environment[tether.VARIABLE]))
    path = rank_log(Path(environment[VARIABLE]), int(environment["RANK"]))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def rank_log(logs: Path, rank: int) -> Path:
    """Where a rank writes what it has to say."""
    return logs / f"rank-{rank}.log"
