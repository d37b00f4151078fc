"""The command line of a Mooncake master. Imports nothing heavy: plans are made with it."""

from dataclasses import dataclass

_LEASE_MS = 5000  # how long a read protects an object from an unforced removal; ours are forced
_CLIENT_TTL_S = 5  # after so many seconds without a heartbeat a client's segment, and what lies in it, is dropped


@dataclass(frozen=True)
class MasterSettings:
    """Where one master listens."""

    port: int
    metrics_port: int  # HTTP
    host: str = "127.0.0.1"  # address it listens on; 0.0.0.0 for clients elsewhere

    @property
    def address(self) -> str:
        """ "host:port" for clients."""
        return f"{self._reach}:{self.port}"

    @property
    def metrics(self) -> str:
        """ "host:port" of its metrics."""
        return f"{self._reach}:{self.metrics_port}"

    def arguments(self) -> list[str]:
        """The arguments of `mooncake_master`."""
        return [
            f"--rpc_address={self.host}",
            f"--rpc_port={self.port}",
            f"--metrics_host={self.host}",
            f"--metrics_port={self.metrics_port}",  # bound in any case: the default would collide with another master's
            f"--default_kv_lease_ttl={_LEASE_MS}",
            f"--client_ttl={_CLIENT_TTL_S}",
            "--enable_metric_reporting=false",  # a line in the log every few seconds; the port has the same numbers
        ]

    @property
    def _reach(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host
