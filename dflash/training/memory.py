"""How much memory a run takes on each device, part by part: arithmetic on the config, nothing is loaded.

Letters: B rows of a micro-batch, S tokens of a row, N anchors, K slots of a block, Q = N*K slots of a row, E hidden
size, F width of the MLP, h heads and g key/value heads of D dimensions, n features, V vocabulary, P weights of the
draft, a bytes of a number in the draft's products (2 under autocast, else 4), t bytes of a number of the target.
What is not counted: the CUDA context (about 1 GiB), fragmentation, buffers of the collectives.
"""

from dataclasses import dataclass

from dflash.config import TrainConfig
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import DraftShape

LOGITS_CHUNK_ROWS = 128  # dflash.objectives.head.CHUNK_ROWS, which a test compares; that module needs torch
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class MemoryPart:
    """Bytes of one purpose on each rank's device, or in its host memory."""

    name: str
    bytes: int
    on_host: bool = False


def memory_per_rank(
    config: TrainConfig, facts: TargetFacts, shape: DraftShape, world_size: int, device_type: str
) -> list[MemoryPart]:
    """Every part at its largest, for rows of the full data.max_length."""
    shards, offload = shards_of(config, world_size), config.parallel.cpu_offload
    state = optimizer_bytes(config, shape)
    averaged = bool(config.optimizer.ema_decay)
    parts = [
        MemoryPart("target weights", target_bytes(config, facts)),
        MemoryPart("draft: fp32 master weights", 4 * shape.parameters // shards, offload),
        MemoryPart("draft: fp32 gradients", 4 * shape.parameters // shards, offload),
        MemoryPart("draft: gradients before they are shared", pending_gradient_bytes(config, shape, world_size)),
        MemoryPart(f"draft: optimizer state ({config.optimizer.name})", state // shards, offload),
        MemoryPart("draft: average of the weights", averaged * 4 * shape.parameters // shards, offload),
        MemoryPart("draft: working copies of the weights", working_copy_bytes(config, shape, world_size)),
        MemoryPart("activations", activation_bytes(config, shape, device_type)),
        MemoryPart("logits chunk", logits_bytes(config, facts, shape)),
        MemoryPart("features", feature_bytes(config, shape, device_type)),
        MemoryPart("target forward", target_forward_bytes(config, facts)),
        MemoryPart("features asked for ahead", announced_bytes(config, shape), on_host=True),
        MemoryPart("checkpoint being written", pending_save_bytes(config, shape) // shards, on_host=True),
    ]
    return [part for part in parts if part.bytes]


def shards_of(config: TrainConfig, world_size: int) -> int:
    """Ranks over which weights, gradients and optimizer state are spread: 1 means a whole copy on each."""
    wanted = {"replicate": 1, "full_shard": world_size, "hybrid": config.parallel.shard_size or world_size}
    return min(wanted[config.parallel.strategy], world_size)


def target_bytes(config: TrainConfig, facts: TargetFacts) -> int:
    """t per weight; where the features come from elsewhere only embedding and LM head are loaded: V*E*t, twice when
    they are not tied. Rank 0 has all weights all the same when it decodes or starts the draft from the target's layers.
    """
    size = _BYTES[config.target.dtype]
    whole = (
        config.features.source == "in_process" or config.metrics.decode_every is not None or config.draft.init == "warm"
    )
    if not whole or facts.parameters is None:
        return facts.vocab_size * facts.hidden_size * size * (1 if facts.tied else 2)
    return facts.parameters * size


def optimizer_bytes(config: TrainConfig, shape: DraftShape) -> int:
    """Two fp32 moments (8P) for AdamW; Muon keeps one (4 bytes) per weight of a matrix and AdamW's two for norms."""
    matrices = 4 if config.optimizer.name == "muon" else 8
    return matrices * shape.matrices + 8 * shape.norms


def pending_gradient_bytes(config: TrainConfig, shape: DraftShape, world_size: int) -> int:
    """While micro-batches accumulate, ranks keep the whole gradient: P numbers in parallel.reduce_dtype.

    One process sums into the fp32 gradients directly, and so do ranks whose step is a single micro-batch.
    """
    if world_size == 1 or config.run.batch_size <= world_size * config.run.micro_batch_size:
        return 0
    return _BYTES[config.parallel.reduce_dtype] * shape.parameters


def working_copy_bytes(config: TrainConfig, shape: DraftShape, world_size: int) -> int:
    """Weights as the products want them: of several ranks, `fc` and two layers at a time, whole (FSDP).

    One process keeps all of them in bf16, 2P, under autocast; in fp32 its master weights serve directly.
    """
    if world_size == 1 and not config.parallel.cpu_offload:
        return 2 * shape.matrices if config.run.autocast else 0
    projection = shape.features * shape.hidden_size**2
    layer = (shape.matrices - projection) // shape.layers
    return _draft_bytes(config) * (projection + min(2, shape.layers) * layer)


def activation_bytes(config: TrainConfig, shape: DraftShape, device_type: str) -> int:
    """What the backward pass of one micro-batch needs, as measured on this draft (see tests/test_estimate.py).

    A layer keeps B * ( Q*E*(16 + 2a)   inputs of its norms (in fp32) and matrices
                      + Q*F*4a          gate, up, activated gate and product
                      + Q*h*D*(8 + a)   queries before and after their norm, input of o_proj
                      + (S+Q)*g*D*8     keys before and after their norm
                      + attention )     see `_attention_bytes`
    All layers together keep B * (S*n*E*a + S*E*(8 + a) + 4*Q*E) for the context and the final norm. With activation
    checkpointing a layer keeps its input, B*Q*E*a, and only one at a time the rest.
    """
    a = _draft_bytes(config)
    rows, length = config.run.micro_batch_size, config.data.max_length
    slots = config.blocks.num_anchors * shape.block_size
    width, heads, keys = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = (
        slots * width * (16 + 2 * a)
        + slots * shape.intermediate_size * 4 * a
        + slots * heads * (8 + a)
        + (length + slots) * keys * 8
        + _attention_bytes(config, shape, device_type)
    )
    around = length * shape.features * width * a + length * width * (8 + a) + 4 * slots * width
    if config.parallel.activation_checkpointing:
        return rows * (around + shape.layers * slots * width * a + layer)
    return rows * (around + shape.layers * layer)


def _attention_bytes(config: TrainConfig, shape: DraftShape, device_type: str) -> int:
    """One layer's attention on one row.

    flex:  queries and output 2*Q*h*D*a, keys and values 2*(S+Q)*g*D*a, one fp32 number per query and head
    dense: queries and output, keys and values repeated for every head 2*(S+Q)*h*D*a, the mask Q*(S+Q)*a
    split: queries, output and the block's keys and values 3*Q*h*D*a, the context's 2*S*g*D*a, probabilities
           Q*(S+K)*h*4 and their bf16 copy
    The first is not measured yet: it needs a GPU.
    """
    a, length = _draft_bytes(config), config.data.max_length
    slots = config.blocks.num_anchors * shape.block_size
    heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    form = config.blocks.attention
    if form == "auto":
        form = "flex" if device_type == "cuda" else "split"
    if form == "flex":
        return 2 * slots * heads * a + 2 * (length + slots) * keys * a + 4 * slots * shape.heads
    if form == "dense":
        return 2 * slots * heads * a + 2 * (length + slots) * heads * a + slots * (length + slots) * a
    probabilities = slots * (length + shape.block_size) * shape.heads
    return 3 * slots * heads * a + 2 * length * keys * a + probabilities * (6 if config.run.autocast else 4)


def logits_bytes(config: TrainConfig, facts: TargetFacts, shape: DraftShape) -> int:
    """Logits and fp32 probabilities of one chunk of R rows, R*V*(t + 4), and the rows themselves with their gradient.

    At most B*N*(K - 1) rows carry a label: slot 0 is given. With objective.candidates, V is their number, and their
    rows of the LM head are copied, V*E*t.
    """
    t, candidates = _BYTES[config.target.dtype], config.objective.candidates
    labelled = config.run.micro_batch_size * config.blocks.num_anchors * (shape.block_size - 1)
    columns = min(candidates or facts.vocab_size, facts.vocab_size)
    chunk = min(LOGITS_CHUNK_ROWS, labelled) * columns * (t + 4)
    copied = columns * facts.hidden_size * t if candidates else 0
    return chunk + copied + 2 * labelled * facts.hidden_size * t


def feature_bytes(config: TrainConfig, shape: DraftShape, device_type: str) -> int:
    """B*S*n*E*t for the micro-batch being trained and for each one prepared ahead."""
    ahead = config.features.prefetch
    if ahead is None:
        ahead = 0 if config.features.source == "in_process" and device_type == "cpu" else 2
    one = config.run.micro_batch_size * config.data.max_length * shape.features * shape.hidden_size
    return one * _BYTES[config.target.dtype] * (1 + ahead)


def announced_bytes(config: TrainConfig, shape: DraftShape) -> int:
    """Page-locked memory in which online features arrive: at most two documents per request in flight, S*n*E*t each.

    Buffers are powers of two, which rounds each of them up.
    """
    if config.features.source != "online":
        return 0
    numbers = config.data.max_length * shape.features * shape.hidden_size
    return 2 * config.online.in_flight * (1 << (numbers * _BYTES[config.target.dtype] - 1).bit_length())


def target_forward_bytes(config: TrainConfig, facts: TargetFacts) -> int:
    """One target layer at a time, since nothing of it is kept: B*S*(6*E + 2*F)*t for its states and MLP."""
    if config.features.source != "in_process":
        return 0
    rows = config.run.micro_batch_size * config.data.max_length
    return rows * (6 * facts.hidden_size + 2 * (facts.intermediate_size or 0)) * _BYTES[config.target.dtype]


def pending_save_bytes(config: TrainConfig, shape: DraftShape) -> int:
    """A checkpoint written while training goes on is copied first: weights, optimizer state and average in fp32."""
    if not config.checkpoint.asynchronous:
        return 0
    return optimizer_bytes(config, shape) + (8 if config.optimizer.ema_decay else 4) * shape.parameters


def _draft_bytes(config: TrainConfig) -> int:
    return 2 if config.run.autocast else 4
