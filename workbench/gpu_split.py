"""Which device does what in a run: as words and boxes, before anything is started."""

from dataclasses import dataclass

from dflash.config import TrainConfig


@dataclass(frozen=True)
class Device:
    """One device of the run. `role` is serves, trains or both."""

    name: str
    role: str
    words: str


def devices_of(config: TrainConfig, world_size: int) -> list[Device]:
    """Every device that a run of `world_size` ranks uses, those that serve the target first."""
    online = config.online
    on_cpu = config.run.device == "cpu"
    if config.features.source == "in_process":
        what = "runs the target on its own rows and trains the draft"
        return [Device(_name(i, world_size, on_cpu), "both", what) for i in range(world_size)]
    if config.features.source == "cache":
        what = "trains the draft on features from disk"
        return [Device(_name(i, world_size, on_cpu), "trains", what) for i in range(world_size)]
    elsewhere = online.servers is not None
    served = len(online.servers) if elsewhere else online.num_servers * (1 if on_cpu else online.tensor_parallel)
    serving = []
    for i in range(served):
        server = i if elsewhere else i // (1 if on_cpu else online.tensor_parallel)
        share = f", part {i % online.tensor_parallel + 1} of {online.tensor_parallel}"
        split = share if not elsewhere and not on_cpu and online.tensor_parallel > 1 else ""
        where = online.servers[i] if elsewhere else f"server {server}" if on_cpu else f"GPU {i}"
        serving.append(Device(where, "serves", f"serves the target (SGLang server {server}{split})"))
    first = 0 if elsewhere else served
    return serving + [
        Device(f"rank {i}" if on_cpu else f"GPU {first + i}", "trains", f"trains the draft (rank {i})")
        for i in range(world_size)
    ]


def _name(index: int, world_size: int, on_cpu: bool) -> str:
    if on_cpu:
        return "CPU" if world_size == 1 else f"rank {index}"
    return f"GPU {index}"
