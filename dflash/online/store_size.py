"""How much the store has to hold: what all ranks may have in flight at a time.

need = ranks x in_flight x data.max_length x layers x hidden size x bytes of a number
"""

from dflash.config import TrainConfig
from dflash.target_facts import TargetFacts

SMALLEST_SEGMENT = 64 << 20  # Mooncake itself takes 16 MiB
_SLACK = 1.25  # objects of different sizes leave gaps
_NUMBER_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def document_bytes(config: TrainConfig, facts: TargetFacts) -> int:
    """Features of the longest document."""
    width = config.draft.num_features * facts.hidden_size
    return config.data.max_length * width * _NUMBER_BYTES[config.target.dtype]


def needed_bytes(config: TrainConfig, facts: TargetFacts, ranks: int) -> int:
    """What the whole store has to hold at least."""
    return ranks * config.online.in_flight * document_bytes(config, facts)


def segment_bytes(config: TrainConfig, facts: TargetFacts, ranks: int) -> int:
    """Memory that each server lends: as configured, else enough even where one of several servers is down."""
    online = config.online
    if online.store_gib is not None:
        return int(online.store_gib * 2**30)
    working = max(1, online.num_servers - 1)
    return max(SMALLEST_SEGMENT, int(_SLACK * needed_bytes(config, facts, ranks) / working))
