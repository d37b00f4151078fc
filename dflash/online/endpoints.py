"""Where a trainer rank finds servers and store: from the config, or from the launcher that started all of them."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dflash.config import TrainConfig
from dflash.errors import UserError

VARIABLE = "DFLASH_ENDPOINTS"  # of a rank's environment, set by the launcher


@dataclass(frozen=True)
class Endpoints:
    """Addresses: of servers "http://host:port", of the Mooncake master and its metrics "host:port"."""

    servers: tuple[str, ...]
    master: str
    metrics: str
    host: str = "127.0.0.1"  # by which the servers reach this machine
    gpus: int | None = None  # that each server runs on, where that is known
    proved: bool = False  # whether somebody has looked that the servers capture what this run needs

    @classmethod
    def of(cls, config: TrainConfig, environment: Mapping[str, str] = os.environ) -> "Endpoints":
        """Those of this process.

        Raises:
            UserError: the config names no servers, and no launcher started this process.
        """
        if text := environment.get(VARIABLE):
            fields = json.loads(text)
            return cls(**{**fields, "servers": tuple(fields["servers"])})
        online = config.online
        if online.servers is None:
            raise UserError(
                "features.source = 'online' without online.servers is started by plain `dflash train`, which starts "
                "the servers and the ranks: leave out torchrun, or name running servers."
            )
        addresses = tuple(address.rstrip("/") for address in online.servers)
        host = online.host or own_address(online.master)
        return cls(addresses, online.master, metrics_of(online.master, online.metrics_port), host)

    def environment(self) -> dict[str, str]:
        """The variable that carries them to a rank."""
        return {VARIABLE: json.dumps(asdict(self))}


def metrics_of(master: str, port: int) -> str:
    """ "host:port" of a master's metrics."""
    return f"{master.rpartition(':')[0]}:{port}"


def own_address(peer: str) -> str:
    """The address of this machine on the way to `peer` ("host:port"); nothing is sent."""
    host, _, port = peer.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
        except OSError:
            return "127.0.0.1"  # whoever connects to the peer will say that it cannot be reached
        return probe.getsockname()[0]
