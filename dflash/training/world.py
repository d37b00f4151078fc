"""The processes that train together: which one this is, where it computes, and how all of them agree.

`torchrun` starts the processes, on one machine or on many, and says everything in environment variables. Without it
there is one process, no process group, and every method here is free.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dflash.config import TrainConfig
from dflash.errors import UserError

T = TypeVar("T")

_PULSE_SECONDS = 5.0  # between signs of life of a rank that works for long
_SHORTEST_TIMEOUT = timedelta(minutes=30)  # the first rank may be downloading a target while the others wait


@dataclass
class World:
    """This process among `size`; the groups are None in a process of its own, and once it has left."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # gloo: small agreements in host memory
    saving: dist.ProcessGroup | None = None  # gloo: checkpoints, also from a thread of their own

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Do something on rank 0 alone and give its result to every rank.

        Raises:
            UserError: rank 0 raised it; every rank does.
        """
        if self.size == 1:
            return work()
        outcome = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=group or self.control)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def on_main_for_long(self, work: Callable[[], T]) -> T:
        """`on_main` for work of any length, while ranks wait for one another for half an hour only.

        It is done in a thread that ends with the process, so that SIGTERM need not wait for it.
        """
        if self.size == 1:
            return work()
        result: Future[T] = Future()
        if self.is_main:
            threading.Thread(target=_settle, args=(result, work), name="long-work", daemon=True).start()
        while True:
            deadline = time.monotonic() + _PULSE_SECONDS
            while self.is_main and not result.done() and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.gather(result.done())[0]:
                return self.on_main(result.result)

    def main_first(self, work: Callable[[], T]) -> T:
        """Every rank does it, the first one of each machine before the others, which then find its downloads.

        Raises:
            UserError: one of the first ranks raised it; every rank does.
        """
        if self.size == 1:
            return work()
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        result = error = None
        if first:
            try:
                result = work()
            except UserError as caught:
                error = caught
        error = next(filter(None, self.gather(error)), None)
        if error is not None:
            raise error
        return result if first else work()

    def gather(self, item: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """One item of every rank, in order, on every rank."""
        if self.size == 1:
            return [item]
        items: list[T] = [None] * self.size
        dist.all_gather_object(items, item, group=group or self.control)
        return items

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank; every rank asks."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag))
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.control)
        return bool(told)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.control)


def _settle(result: "Future[T]", work: Callable[[], T]) -> None:
    try:
        result.set_result(work())
    except BaseException as error:  # raised where the result is asked for
        result.set_exception(error)


@contextmanager
def joined(config: TrainConfig) -> Iterator[World]:
    """Take one's place among the processes that torchrun started, and leave it at the end.

    Raises:
        UserError: the device does not fit several ranks, or does not exist.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    device = _device(config.run.device, size)
    _refuse_unsuited(config, device)
    if size == 1 and not config.parallel.cpu_offload:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mine = not dist.is_initialized()
    timeout = max(_SHORTEST_TIMEOUT, timedelta(seconds=3 * config.metrics.decode_seconds))
    if mine:
        # CUDA ranks sum offloaded gradients and agree on decisions in host memory, which is gloo's business.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if size == 1 else {}
        dist.init_process_group(backend, timeout=timeout, **alone)
    control, saving = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    world = World(dist.get_rank(), size, device, control, saving)
    del control, saving
    try:
        yield world
    finally:
        # A group's threads have to end before the interpreter does, or they may abort it. An error on its way up keeps
        # the frames that know `world`, so the groups go even where that stays.
        world.control = world.saving = None
        if mine:
            dist.destroy_process_group()


def _refuse_unsuited(config: TrainConfig, device: torch.device) -> None:
    """What this device cannot do: only now is it known what "auto" stands for, and nothing has been loaded yet."""
    if device.type != "cpu":
        return
    if config.blocks.attention == "flex":
        raise UserError("blocks.attention = 'flex' has no backward pass on a CPU: set blocks.attention=auto.")
    if config.parallel.cpu_offload:
        raise UserError("parallel.cpu_offload = true does nothing on a CPU, where all is in host memory: drop it.")


def _device(name: str, size: int) -> torch.device:
    """The torch device of this rank; "auto" is CUDA where there is any, and several ranks take one GPU each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"run.device = {name!r} is no torch device: use cpu, cuda or auto.") from error
    if device.type != "cuda" or size == 1:
        return device
    if device.index is not None:
        raise UserError(f"run.device = {name!r} names one GPU, but {size} ranks train: set run.device=cuda.")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"Rank {os.environ.get('RANK')} has no GPU of its own: this machine has {torch.cuda.device_count()}; start "
            "torchrun with --nproc-per-node of at most that."
        )
    return torch.device("cuda", local)
