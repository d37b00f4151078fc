"""Which device does what in a run: as words and boxes, before anything is started."""

from dataclasses import dataclass

from dflash.online.deployment import Deployment
from dflash.training.plan import RunPlan


@dataclass(frozen=True)
class Device:
    """One device of the run. `role` is serves, trains or both."""

    name: str
    role: str
    words: str


def devices_of(plan: RunPlan) -> list[Device]:
    """Every device that a run uses, those that serve the target first; none where too little is known of the target."""
    config, ranks = plan.config, plan.estimate.world_size
    if plan.deployment is not None:
        return _deployed(plan.deployment)
    source, on_cpu = config.features.source, config.run.device == "cpu"
    training = [("CPU" if ranks == 1 else f"rank {i}") if on_cpu else f"GPU {i}" for i in range(ranks)]
    if source == "in_process":
        return [Device(name, "both", "runs the target on its own rows and trains the draft") for name in training]
    if source == "cache":
        return [Device(name, "trains", "trains the draft on features from disk") for name in training]
    if config.online.servers is None:
        return []
    serving = [Device(address, "serves", "serves the target, and runs already") for address in config.online.servers]
    return serving + [Device(name, "trains", "trains the draft") for name in training]


def _deployed(deployment: Deployment) -> list[Device]:
    """As the launcher of `dflash train` hands the devices out."""
    devices = []
    for number, server in enumerate(deployment.servers):
        for part, gpu in enumerate(server.gpus, 1):
            shared = f", part {part} of {len(server.gpus)}" if len(server.gpus) > 1 else ""
            devices.append(Device(f"GPU {gpu}", "serves", f"serves the target: SGLang server {number}{shared}"))
        if not server.gpus:
            devices.append(Device(f"server {number}", "serves", "serves the target on this CPU, an SGLang process"))
    names = [f"GPU {gpu}" for gpu in deployment.trainer_gpus] or [f"rank {i}" for i in range(deployment.ranks)]
    return devices + [Device(name, "trains", f"trains the draft: rank {rank}") for rank, name in enumerate(names)]
