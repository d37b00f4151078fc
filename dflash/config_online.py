"""The `online` section: servers that run the target elsewhere, and the store through which its features come."""

from typing import Annotated, Literal

from pydantic import Field

from dflash.config_section import Section, UserPath
from dflash.devices import MOST_GPUS

Port = Annotated[int, Field(ge=1024, le=65535)]


class OnlineConfig(Section):
    """Used with features.source: online. Without `servers`, `dflash train` starts them, the store and the ranks."""

    # Who serves.
    servers: list[str] | None = Field(
        None, min_length=1, description="addresses of running servers; default: the launcher starts them"
    )
    num_servers: int = Field(1, ge=1, le=MOST_GPUS, description="servers to start")
    tensor_parallel: int = Field(1, ge=1, le=MOST_GPUS, description="GPUs of each server")
    trainers: int | None = Field(
        None, ge=1, le=MOST_GPUS, description="ranks to start; default: one for each GPU that no server has, 1 on a CPU"
    )
    host: str | None = Field(
        None, min_length=1, description="address by which other machines reach this one; default: this machine only"
    )
    port: Port = Field(30000, description="of the first server; the others take the following ones")
    environment: UserPath | None = Field(
        None, description="folder that `dflash engines install` filled; default: the usual one"
    )

    # What a server is given.
    context_length: int | None = Field(None, ge=16, description="tokens; default: what data.max_length takes")
    chunked_prefill: int | None = Field(None, ge=16, description="tokens of a prefill chunk; default: SGLang's choice")
    memory_fraction: float | None = Field(
        None, gt=0, lt=1, description="of a GPU's memory for weights and KV cache; default: SGLang's choice"
    )
    server_arguments: list[str] = Field(default_factory=list, description="more arguments of SGLang, as they are")

    # The store between servers and ranks.
    master: str | None = Field(
        None, description="host:port of a running Mooncake master; default: the launcher starts one"
    )
    master_port: Port = Field(50051, description="of the Mooncake master to start")
    metrics_port: Port = Field(50052, description="HTTP port of the Mooncake master, where its usage is read")
    store_gib: float | None = Field(
        None, ge=1 / 64, description="host memory each server lends to the store; default: what may be in flight"
    )
    protocol: Literal["tcp", "rdma"] = Field("tcp", description="how tensors travel")
    rdma_devices: list[str] = Field(default_factory=list, description="network cards; default: Mooncake's choice")

    # How a rank asks.
    in_flight: int = Field(16, ge=1, description="documents that each rank asks for at a time")
    answer_seconds: float = Field(300.0, gt=0, description="longest wait for one answer, the server's queue included")
    patience: float = Field(
        600.0, gt=0, description="seconds for which a document may fail again and again; then the run ends"
    )

    # Whose answers are trained on.
    regenerate: bool = Field(
        False, description="servers answer every conversation's prompts before the first step; those are trained on"
    )
    regenerate_temperature: float = Field(0.0, ge=0, le=100, description="of regenerated answers; 0 is greedy")
    regenerate_tokens: int | None = Field(
        None, ge=1, description="most tokens of a regenerated answer; default: what data.max_length leaves"
    )
    regenerate_in_flight: int = Field(32, ge=1, description="answers that each server works on at a time")

    # When a part ends by itself.
    on_failure: Literal["stop", "restart"] = Field("stop", description="of a server, the store or the ranks")
    max_restarts: int = Field(3, ge=1, description="of each part; then the run ends")
    start_seconds: float = Field(1200.0, gt=0, description="longest wait for a server to be ready")
