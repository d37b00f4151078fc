"""What the launcher tells the capture plugin: one environment variable, since SGLang hands nothing else to plugins."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

VARIABLE = "DFLASH_CAPTURE"


@dataclass(frozen=True)
class CaptureSettings:
    """Where captured tensors go, and which ones. A server without these settings serves as if there were no plugin."""

    master: str  # "host:port" of the Mooncake master
    host: str = "127.0.0.1"  # address under which the trainer ranks reach the server's memory
    segment_bytes: int = 1 << 30  # memory that the server lends to the store: what its captures may take in all
    protocol: str = "tcp"  # or "rdma"
    devices: str = ""  # RDMA devices, separated by commas
    # The normed output of the last layer, for objectives that need the target's logits. Off, so that nothing is ever
    # written that nobody reads.
    store_last_hidden_states: bool = False
    queue_bytes: int = 1 << 30  # captures that wait for being written; beyond that the server waits

    def environment(self) -> dict[str, str]:
        """The variable that carries these settings, to be added to the server's environment."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "CaptureSettings | None":
        """The settings of this process; None when nothing shall be captured.

        Raises:
            ValueError: the variable holds something else.
        """
        text = environment.get(VARIABLE)
        if not text:
            return None
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{VARIABLE} does not hold the settings of a capture: {error}") from error
