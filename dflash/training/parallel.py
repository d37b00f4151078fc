"""Preparing the draft for its ranks, in torchtitan's order: activation checkpointing, compile, shard (FSDP2).

Master weights and optimizer state stay in fp32 and are sharded; layers are gathered in bf16 when they are computed.
Gradients are *sums* over ranks and micro-batches; the trainer divides them once, by the weight sum of the whole step.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from dflash.config import ParallelConfig, TrainConfig
from dflash.errors import UserError
from dflash.model.draft import DFlashDraft
from dflash.target import DTYPES
from dflash.training.world import World


def prepare_draft(draft: DFlashDraft, config: TrainConfig, world: World, *, compiler: str = "inductor") -> None:
    """Prepare an fp32 draft in place; alone and without options it stays as it is.

    Args:
        compiler: backend of torch.compile where `parallel.compile` asks for it.

    Raises:
        UserError: the strategy does not fit the number of ranks.
    """
    settings = config.parallel
    check_parallel(settings, world)
    if settings.compile:
        # One graph serves all layers, but again for each of training and validation, first layer and others, row
        # lengths and batch sizes; torch gives up at 8.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for layer in draft.layers:
        # Wrapping the method, not the module, keeps the weights' names, which checkpoints use.
        if settings.activation_checkpointing:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        if settings.compile:
            layer.forward = torch.compile(layer.forward, fullgraph=True, backend=compiler)
    if world.size > 1 or settings.cpu_offload:
        _shard(draft, config, world)


def check_parallel(settings: ParallelConfig, world: World) -> None:
    """Refuse what cannot work with these ranks; what the device makes pointless was refused on joining them.

    Raises:
        UserError: naming the setting, its value and what to do.
    """
    if settings.strategy != "hybrid":
        return
    if settings.shard_size is None:
        raise UserError("parallel.strategy = 'hybrid' needs parallel.shard_size, the ranks that share a copy: set it.")
    if world.size % settings.shard_size:
        raise UserError(
            f"parallel.shard_size = {settings.shard_size} does not divide the {world.size} ranks: choose a divisor."
        )


def _shard(draft: DFlashDraft, config: TrainConfig, world: World) -> None:
    for parameter in draft.parameters():
        if world.size > 1:
            dist.broadcast(parameter.data, src=0)  # machines may differ in the last bit of a random start
    policy = partial(
        fully_shard,
        mesh=_mesh(config.parallel, world),
        mp_policy=MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if config.run.autocast else None,
            reduce_dtype=DTYPES[config.parallel.reduce_dtype],
        ),
        offload_policy=CPUOffloadPolicy() if config.parallel.cpu_offload else OffloadPolicy(),
        # Always: weights left gathered by a validation would be stale in the step after it.
        reshard_after_forward=True,
    )
    for layer in draft.layers:
        policy(layer)
    policy(draft)
    for module in draft.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # does not reach the modules below
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def _mesh(settings: ParallelConfig, world: World) -> DeviceMesh:
    """`replicate` is a hybrid whose groups have one rank each: a whole copy on every rank, one code path."""
    if settings.strategy == "full_shard":
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    group = 1 if settings.strategy == "replicate" else settings.shard_size
    return init_device_mesh(world.device.type, (world.size // group, group), mesh_dim_names=("replicate", "shard"))


def sync_gradients(draft: nn.Module, now: bool) -> None:
    """Whether the next backward reduces gradients over ranks: once per step, behind its last micro-batch.

    Until then every rank keeps the whole gradient, in the dtype of the reduction.
    """
    if isinstance(draft, FSDPModule):
        draft.set_requires_gradient_sync(now)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor that may be sharded; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded; every rank of its mesh has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_group(tensor: torch.Tensor) -> dist.ProcessGroup | None:
    """The ranks that hold the other parts of a sharded tensor; None where one rank holds it all."""
    return tensor.device_mesh.get_group("shard") if isinstance(tensor, DTensor) else None
