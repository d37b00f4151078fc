"""All tensors of a run under stable names, and back: what torch.distributed.checkpoint stores, in safetensors files.

    weights.NAME             fp32 master weights
    average.NAME             their moving average, where the run keeps one
    optimizer.NAME.KEY       state of the optimizer for that weight, of its shape
    counter.NAME.KEY         the same where it is a single number
    rng.RANK.DEVICE          torch's random state of every rank, bytes

Nothing else of an optimizer has to be kept: its settings are the config's. Sharded tensors are stored in parts and put
together for whatever number of ranks resumes. Nothing is pickled, so nothing is unpickled.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.optim import Optimizer

from dflash.training.ema import WeightAverage
from dflash.training.parallel import own_part

_FILE_BYTES = 1 << 30  # a file is put together in memory before it is written


class TrainingState:
    """The tensors of a run, wherever they are kept."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], average: WeightAverage | None = None, rank: int = 0
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        self._optimizers = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
        self._average = average
        self._rank = rank

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name; they share memory with the run, but for the random states."""
        tree = self._model_tensors()
        for parameter, optimizer in self._optimizers.items():
            for key, value in optimizer.state[parameter].items():
                name = f"{self._names[parameter]}.{key}"
                tree |= {f"counter.{name}": value.reshape(1)} if value.ndim == 0 else {f"optimizer.{name}": value}
        return tree | self._random_states()

    def load(self, folder: Path, group: dist.ProcessGroup | None, same_world: bool) -> bool:
        """Restore in place what `write_tensors` wrote; random states only in a world of the same size.

        Returns:
            False when the run keeps an average and the checkpoint holds none; it then starts at the weights.

        Raises:
            ValueError: the checkpoint's weights are not this draft's.
        """
        reader = HuggingFaceStorageReader(str(folder))
        stored = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
        self._check_weights(stored)
        has_average = any(name.startswith("average.") for name in stored)
        tree = {n: t for n, t in self._model_tensors().items() if has_average or not n.startswith("average.")}
        slots = self._optimizer_slots(stored)
        tree |= {name: tensor for name, _, _, tensor in slots}
        random_states = self._random_states() if same_world else {}
        tree |= {name: tensor for name, tensor in random_states.items() if name in stored}
        dcp.load(tree, storage_reader=reader, process_group=group, no_dist=group is None)
        for name, parameter, key, tensor in slots:
            restored = tensor.reshape(()) if name.startswith("counter.") else tensor
            self._optimizers[parameter].state[parameter][key] = restored
        self._restore_random_states(random_states)
        if self._average is not None and not has_average:
            self._average.restart()
        return has_average or self._average is None

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        tree = {f"weights.{name}": parameter.detach() for name, parameter in self._parameters.items()}
        if self._average is not None:
            tree |= {f"average.{name}": tensor for name, tensor in self._average.tensors.items()}
        return tree

    def _check_weights(self, stored: dict[str, tuple[int, ...]]) -> None:
        theirs = {name.removeprefix("weights."): s for name, s in stored.items() if name.startswith("weights.")}
        mine = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                there, here = theirs.get(name, "absent"), mine.get(name, "absent")
                raise ValueError(f"{name} is {there} in it and {here} in the draft")

    def _optimizer_slots(self, stored: Iterable[str]) -> list[tuple[str, torch.Tensor, str, torch.Tensor]]:
        """Name, parameter, key and room for every optimizer tensor among the stored names."""
        slots = []
        for name in stored:
            kind, _, rest = name.partition(".")
            if kind in ("optimizer", "counter"):
                owner, _, key = rest.rpartition(".")
                parameter = self._parameters[owner]
                room = torch.zeros_like(parameter) if kind == "optimizer" else torch.zeros(1)
                slots.append((name, parameter, key, room.detach()))
        return slots

    def _random_states(self) -> dict[str, torch.Tensor]:
        states = {f"rng.{self._rank}.cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            states[f"rng.{self._rank}.cuda"] = torch.cuda.get_rng_state()
        return states

    def _restore_random_states(self, states: dict[str, torch.Tensor]) -> None:
        for name, state in states.items():
            (torch.set_rng_state if name.endswith("cpu") else torch.cuda.set_rng_state)(state)


class _FileOf(dict):
    """Number of the file for a tensor. The first rank decides for all and does not know the others' random states."""

    def __missing__(self, _name: str) -> int:
        return 1


def host_copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy in host memory, sharded as the original is, for a writer that works while training goes on."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def write_tensors(
    folder: Path, tensors: dict[str, torch.Tensor], group: dist.ProcessGroup | None, rank: int
) -> list[Path]:
    """Every rank writes its part of `tensors`; returns the files of this rank.

    Raises:
        CheckpointException: on every rank, when one of them failed.
    """
    files, number, filled = _FileOf(), 1, 0
    for name, tensor in tensors.items():
        size = own_part(tensor).nbytes
        if filled and filled + size > _FILE_BYTES:
            number, filled = number + 1, 0
        files[name], filled = number, filled + size
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*"))
