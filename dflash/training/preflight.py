"""Does a config fit its target and its ranks? Judged from a few facts, before anything is loaded."""

from collections.abc import Iterator

from dflash.complaints import Complaint
from dflash.config import TrainConfig
from dflash.data.sources import is_hub_id
from dflash.online.captured_layers import captured_layers
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import FROM_SCRATCH
from dflash.training.schedule import phases


def target_complaints(config: TrainConfig, facts: TargetFacts) -> Iterator[Complaint]:
    """What the target makes impossible."""
    yield from _layers(config, facts)
    yield from _vocabulary(config, facts)
    if facts.max_length is not None and config.data.max_length > facts.max_length:
        yield Complaint(
            ("data.max_length", "target"),
            f"data.max_length = {config.data.max_length} exceeds the {facts.max_length} positions of target "
            f"{config.target.name!r}: set data.max_length={facts.max_length} or less.",
        )


def _layers(config: TrainConfig, facts: TargetFacts) -> Iterator[Complaint]:
    draft, target = config.draft, f"target {config.target.name!r}"
    ids = draft.target_layer_ids
    if ids is not None and max(ids) >= facts.depth:
        yield Complaint(
            ("draft.target_layer_ids", "target"),
            f"draft.target_layer_ids = {ids} goes beyond {target}, whose layers are 0 to {facts.depth - 1}: choose "
            "among those.",
        )
    elif config.features.source == "online" and facts.depth - 1 in captured_layers(config, facts):
        ids = list(captured_layers(config, facts))
        yield Complaint(
            ("draft.target_layer_ids", "features.source", "target"),
            f"draft.target_layer_ids = {ids} names the last layer of {target}, which SGLang cannot capture for "
            "features.source = 'online': choose lower layers, or another source.",
        )
    if ids is None and draft.init in FROM_SCRATCH and draft.num_features > max(1, facts.depth - 3):
        yield Complaint(
            ("draft.num_features", "target"),
            f"draft.num_features = {draft.num_features} is too many to spread over the {facts.depth} layers of "
            f"{target}: ask for {max(1, facts.depth - 3)} or fewer, or set draft.target_layer_ids.",
        )
    if draft.init != "warm":
        return
    if draft.num_hidden_layers > facts.depth:
        yield Complaint(
            ("draft.num_hidden_layers", "draft.init", "target"),
            f"draft.num_hidden_layers = {draft.num_hidden_layers} exceeds the {facts.depth} layers of {target} that "
            "draft.init = 'warm' copies: lower it or set draft.init=random.",
        )
    if draft.intermediate_size not in (None, facts.intermediate_size):
        yield Complaint(
            ("draft.intermediate_size", "draft.init", "target"),
            f"draft.intermediate_size = {draft.intermediate_size} differs from the {facts.intermediate_size} of the "
            f"layers of {target} that draft.init = 'warm' copies: remove it or set draft.init=random.",
        )


def _vocabulary(config: TrainConfig, facts: TargetFacts) -> Iterator[Complaint]:
    rows = f"the {facts.vocab_size} rows of target {config.target.name!r}"
    mask = config.draft.mask_token_id
    roles = [role for role, token in facts.special_ids if token == mask]
    if mask is not None and mask >= facts.vocab_size:
        yield Complaint(
            ("draft.mask_token_id", "target"),
            f"draft.mask_token_id = {mask} lies outside {rows}: choose a row that text never produces, or remove it.",
        )
    elif roles:
        yield Complaint(
            ("draft.mask_token_id", "target"),
            f"draft.mask_token_id = {mask} is the target's {' and '.join(roles)} token, which text does contain: "
            "choose a row that it never produces, or remove it.",
        )
    for name, size in (
        ("draft.vocabulary_size", config.draft.vocabulary_size),
        ("objective.candidates", config.objective.candidates),
    ):
        if size is not None and size > facts.vocab_size:
            yield Complaint((name, "target"), f"{name} = {size} exceeds {rows}: lower it, or remove it to use all.")


def size_complaints(config: TrainConfig, conversations: int | None) -> Iterator[Complaint]:
    """Too little data; `conversations` is how many data.train holds at most, where that could be counted."""
    data = config.data
    if conversations is None or conversations > data.validation_size:
        return
    if data.limit is not None and data.limit * len(data.train) <= data.validation_size:
        return  # then data.limit is to blame, which is complained about already
    yield Complaint(
        ("data.train", "data.limit", "data.validation_size"),
        f"data.validation_size = {data.validation_size} holds out all {conversations} conversations in data.train = "
        f"{data.train}: lower it or add data.",
    )


def rank_complaints(config: TrainConfig, world_size: int, *, resumed: bool) -> Iterator[Complaint]:
    """What the number of processes makes impossible or pointless. A resumed run may have had more of them before."""
    run, parallel = config.run, config.parallel
    at_once = world_size * run.micro_batch_size
    if run.batch_size % at_once:
        yield Complaint(
            ("run.batch_size", "run.micro_batch_size"),
            f"run.batch_size = {run.batch_size} is no multiple of {at_once}, the {world_size} "
            f"rank{'s' * (world_size > 1)} times run.micro_batch_size = {run.micro_batch_size}: set run.batch_size to "
            f"{max(1, run.batch_size // at_once) * at_once} or change the others.",
        )
    if world_size > 1 and ":" in run.device:
        yield Complaint(
            ("run.device",),
            f"run.device = {run.device!r} names one device for {world_size} ranks: set "
            f"run.device={run.device.partition(':')[0]}.",
        )
    if parallel.strategy == "hybrid" and parallel.shard_size is None:
        yield Complaint(
            ("parallel.strategy", "parallel.shard_size"),
            "parallel.strategy = 'hybrid' needs parallel.shard_size, the ranks that share one copy of a draft: set it.",
        )
    elif parallel.strategy == "hybrid" and world_size % parallel.shard_size:
        yield Complaint(
            ("parallel.shard_size",),
            f"parallel.shard_size = {parallel.shard_size} does not divide the {world_size} "
            f"rank{'s' * (world_size > 1)}: choose a divisor, or start that many with torchrun.",
        )
    if parallel.cpu_offload and run.device == "cpu":
        yield Complaint(
            ("parallel.cpu_offload", "run.device"),
            "parallel.cpu_offload = True has no effect with run.device = 'cpu', all in host memory already: remove it.",
        )
    if world_size > 1 or parallel.cpu_offload or resumed:
        return
    for name, plain in (("strategy", "full_shard"), ("reduce_dtype", "float32")):
        value = getattr(parallel, name)
        if value not in (plain, "hybrid"):  # hybrid: its shard_size was complained about
            yield Complaint(
                (f"parallel.{name}",),
                f"parallel.{name} = {value!r} has no effect on one process: remove it, or start several with "
                "torchrun --nproc-per-node N (in a dry run: --world-size N).",
            )


def notes(config: TrainConfig, facts: TargetFacts | None, steps: int | None) -> Iterator[str]:
    """What is allowed, but should not surprise anyone."""
    if facts is None:
        yield (
            f"Nothing is known here about target {config.target.name!r}: layers, mask token, vocabulary, memory and "
            "disk were not checked."
        )
    elif config.features.source != "online" and facts.depth - 1 in (config.draft.target_layer_ids or ()):
        yield (
            f"draft.target_layer_ids names layer {facts.depth - 1}, the target's last one, which SGLang cannot "
            "capture: this draft will not serve there."
        )
    if facts is not None and facts.intermediate_size is None and config.features.source == "in_process":
        yield f"Target {config.target.name!r} has experts, which its memory above does not count."
    for source in config.data.train:
        if is_hub_id(source):
            yield f"data.train names {source!r}, which is looked up on the Hugging Face hub when the run starts."
    if steps is None:
        return
    warmup, start = phases(steps, config.schedule)
    if warmup == 0 and config.schedule.warmup_ratio > 0:
        yield f"schedule.warmup_ratio = {config.schedule.warmup_ratio} of {steps} steps is less than one: no warm-up."
    if start >= steps and config.schedule.kind == "wsd":
        yield f"schedule.decay_ratio = {config.schedule.decay_ratio} of {steps} steps is less than one: no decay."
    if (every := config.metrics.decode_every) is not None and every > steps:
        yield f"metrics.decode_every = {every} lies beyond the {steps} steps of the run: tau is never decoded."
