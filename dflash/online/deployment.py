"""Which processes an online run takes, and where each of them runs. Imports nothing heavy: plans are made with it."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dflash.config import TrainConfig
from dflash.config_online_checks import SPARE_TOKENS
from dflash.devices import assumed_device_type
from dflash.embedded import EMBEDDED_NAME, converted_folder
from dflash.online.capture_settings import CaptureSettings
from dflash.online.endpoints import Endpoints, metrics_of
from dflash.online.environment import EngineEnvironment
from dflash.online.gpus import split, visible_gpus
from dflash.online.master_settings import MasterSettings
from dflash.online.server_settings import ServerSettings
from dflash.online.store_size import needed_bytes, segment_bytes
from dflash.target_facts import TargetFacts

_CPU_CACHE = 4096  # tokens in the KV cache of a server on a CPU, at least


@dataclass(frozen=True)
class Deployment:
    """Everything that the launcher starts on this machine."""

    servers: tuple[ServerSettings, ...]
    capture: CaptureSettings
    master: MasterSettings | None  # None: one runs already
    endpoints: Endpoints
    environment: EngineEnvironment
    ranks: int  # that use the store
    trains_here: bool  # whether they are started as well
    trainer_gpus: tuple[str, ...]  # none on a CPU
    needed_bytes: int  # that all ranks may have in the store at a time

    @property
    def store_bytes(self) -> int:
        """What the servers lend to the store in all."""
        return len(self.servers) * self.capture.segment_bytes

    @property
    def summary(self) -> str:
        """What is started, in words."""
        parts = ["a Mooncake master"] if self.master is not None else []
        each = len(self.servers[0].gpus)
        parts.append(f"{len(self.servers)} SGLang server(s) on {f'{each} GPU(s) each' if each else 'the CPU'}")
        if self.trains_here:
            parts.append(f"{self.ranks} training rank(s)")
        return ", ".join(parts)

    @property
    def gpus(self) -> int:
        """That it takes in all."""
        return sum(len(server.gpus) for server in self.servers) + len(self.trainer_gpus)

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        facts: TargetFacts,
        layer_ids: tuple[int, ...],
        ranks: int,
        *,
        trains_here: bool = True,
    ) -> "Deployment":
        """What `config`, without online.servers, amounts to; the ranks may be on other machines."""
        online, device = config.online, serving_device(config)
        host = online.host or "127.0.0.1"
        each = online.tensor_parallel if device == "cuda" else 0
        serving, training = split(
            visible_gpus(), online.num_servers, each, ranks if each and trains_here else 0
        )
        context = online.context_length or config.data.max_length + SPARE_TOKENS
        servers = tuple(
            ServerSettings(
                model=model_path(config.target.name),
                layer_ids=layer_ids,
                port=online.port + number,
                host=host,
                dtype=config.target.dtype,
                revision=config.target.revision,
                context_length=context,
                chunked_prefill=online.chunked_prefill,
                gpus=gpus,
                cached_tokens=max(_CPU_CACHE, 2 * context),
                memory_fraction=online.memory_fraction,
                extra=tuple(online.server_arguments),
            )
            for number, gpus in enumerate(serving)
        )
        master = None if online.master else MasterSettings(online.master_port, online.metrics_port, host)
        address = online.master or master.address
        metrics = metrics_of(address, online.metrics_port)
        urls = tuple(server.url for server in servers)
        return cls(
            servers=servers,
            capture=CaptureSettings(
                address,
                host=host,
                segment_bytes=segment_bytes(config, facts, ranks),
                protocol=online.protocol,
                devices=",".join(online.rdma_devices),
            ),
            master=master,
            endpoints=Endpoints(urls, address, metrics, host, gpus=each or None, proved=True),
            environment=EngineEnvironment.at(online.environment, device),
            ranks=ranks,
            trains_here=trains_here,
            trainer_gpus=training,
            needed_bytes=needed_bytes(config, facts, ranks),
        )

    def commands(self) -> Iterator[tuple[str, str]]:
        """Name and command of master and servers, as a shell would take them."""
        if self.master is not None:
            yield "master", shlex.join(["mooncake_master", *self.master.arguments()])
        for number, server in enumerate(self.servers):
            command = [str(self.environment.python), "-I", "-m", "sglang.launch_server", *server.arguments()]
            variables = self.environment.device_variables | self.capture.environment()
            yield f"server {number}", _in_shell(command, server.gpus, variables)

    def of_ranks(self, command: list[str]) -> str:
        """The command that starts the ranks, as a shell would take it."""
        return _in_shell(command, self.trainer_gpus, {})


def _in_shell(command: list[str], gpus: tuple[str, ...], variables: dict[str, str]) -> str:
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    settings = [f"{name}={shlex.quote(value)}" for name, value in (visible | variables).items()]
    return " ".join([*settings, shlex.join(command)])


def serving_device(config: TrainConfig) -> Literal["cpu", "cuda"]:
    """What the servers run on: as the ranks do."""
    return "cuda" if assumed_device_type(config.run.device) == "cuda" else "cpu"


def trainers_of(config: TrainConfig) -> int:
    """Ranks that the launcher starts: as configured, else one for each GPU that no server has, at least one."""
    online = config.online
    if online.trainers is not None:
        return online.trainers
    if serving_device(config) == "cpu":
        return 1
    return max(1, len(visible_gpus()) - online.num_servers * online.tensor_parallel)


def is_started_here(config: TrainConfig) -> bool:
    """Whether the launcher has to start servers for this run."""
    return config.features.source == "online" and config.online.servers is None


def model_path(target: str) -> str:
    """What SGLang is given as its model: the embedded target's folder, a folder or a hub id."""
    if target == EMBEDDED_NAME:
        return str(converted_folder())
    folder = Path(target).expanduser()
    return str(folder) if folder.is_dir() else target
