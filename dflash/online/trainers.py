"""The training ranks of this machine: torchrun as one supervised process."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dflash.online.child import Child, describe_exit
from dflash.online.deployment import Deployment
from dflash.online.processes import ask_to_stop, children
from dflash.online.rank import VARIABLE

# How long torchrun leaves the other ranks when one has failed: they wait for it in a collective, and get no further.
_OTHERS_SECONDS = "60"


class Trainers:
    """Ranks that run `dflash train` with the same arguments; each ties itself to torchrun (`rank.enter_rank`)."""

    def __init__(self, deployment: Deployment, logs: Path) -> None:
        self._deployment, self._logs = deployment, logs
        self.child: Child | None = None
        self._asked: set[int] = set()  # ranks that were asked to stop

    @property
    def returncode(self) -> int | None:
        """torchrun's exit status; None while it runs, or was not started."""
        return None if self.child is None else self.child.returncode

    def start(self, arguments: Sequence[str]) -> None:
        """Start them; `arguments` are those of the `dflash` command."""
        self.stop()
        deployment = self._deployment
        environment = {
            **os.environ,
            **deployment.endpoints.environment(),
            VARIABLE: str(self._logs),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _OTHERS_SECONDS,
        }
        if deployment.trainer_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(deployment.trainer_gpus)
        command = trainer_command(deployment.ranks, arguments)
        self.child = Child("torchrun", command, self._logs / "torchrun.log", environment)

    def ask_to_stop(self) -> None:
        """Have the ranks end behind the step they are at, with a checkpoint; torchrun would not wait for that.

        To be called until they have ended: each is asked once, also those that torchrun has yet to start.
        """
        if self.returncode is None and self.child is not None:
            ranks = set(children(self.child.pid)) - self._asked
            ask_to_stop(ranks)
            self._asked |= ranks

    def stop(self) -> None:
        """End them now. May be called twice."""
        if self.child is not None:
            self.child.stop(grace=0.0)

    def what_ended(self) -> str:
        """Which rank ended first, and how, as torchrun tells it."""
        cause = re.search(
            r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", self.child.log_tail(200), re.DOTALL
        )
        if cause:
            return f"Training rank {cause[1]} ended with {describe_exit(int(cause[2]))}"
        return f"{self.child.name} ended with {describe_exit(self.child.returncode)}"


def trainer_command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command that starts so many ranks of `dflash`."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*torchrun, "-m", "dflash", *arguments]
