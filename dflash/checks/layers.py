"""Are the features those the draft was trained on? They are moved by one layer up and down, and it has to get worse.

An off-by-one in the layers is the most reported silent fault in this field: the draft trains, and accepts almost
nothing when it is served. The objective's loss on given conversations decides, since it moves with every slot;
tau estimate and first-slot accuracy stand beside it. Intervals come from drawing conversations anew (bootstrap).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from tqdm import tqdm

from dflash.config import TrainConfig, parse_config
from dflash.data.rows import Row, build_rows
from dflash.data.template import Rendered
from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.features.micro_batch import MicroBatchPreparer
from dflash.model.draft import DFlashDraft
from dflash.objectives.cross_entropy import BlockStatistics
from dflash.target import TargetModel
from dflash.training.order import row_generators
from dflash.training.step import DraftStep

_MIN_CONVERSATIONS = 4  # fewer say nothing about how far conversations differ
_RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """How much an offset is worse than offset 0, with a 95 % interval over conversations."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LayerRow:
    """The draft on features moved by `offset` layers; differences are None at offset 0."""

    offset: int
    layer_ids: tuple[int, ...]
    loss: float
    tau_estimate: float
    first_slot_accuracy: float
    loss_increase: Difference | None
    tau_decrease: Difference | None


@dataclass(frozen=True)
class LayersReport:
    rows: tuple[LayerRow, ...]
    conversations: int
    blocks: int
    skipped_offsets: tuple[int, ...]  # beyond the target's first or last layer

    @property
    def passed(self) -> bool:
        return not self.reason

    @property
    def reason(self) -> str:
        """In words, why the gate is not passed; empty when it is."""
        worst = min((row for row in self.rows if row.loss_increase), key=lambda row: row.loss_increase.low)
        increase = worst.loss_increase
        if increase.low > 0:
            return ""
        if increase.high < 0:
            return (
                f"The draft does better on features {worst.offset:+d} layer off (loss {worst.loss:.3f}, lower by "
                f"{-increase.value:.3f}): it was trained on layers {list(worst.layer_ids)} instead of those its config "
                "lists, so mend target_layer_ids or the capture that its features came from."
            )
        return (
            f"Features {worst.offset:+d} layer off do about as well (loss higher by {increase.value:.3f}, 95 % interval"
            f" {increase.low:.3f} to {increase.high:.3f}): the draft has hardly learnt to use its features, or more "
            "conversations are needed to tell."
        )


@torch.no_grad()
def check_layers(
    draft: DFlashDraft,
    target: TargetModel,
    conversations: Sequence[Rendered],
    *,
    offsets: Sequence[int] = (-1, 0, 1),
    num_anchors: int = 64,
    seed: int = 0,
    progress: bool = True,
    on_text: Callable[[int, int], None] = lambda done, total: None,
) -> LayersReport:
    """Compare the layers of a trained draft with their neighbours.

    Args:
        draft: in the target's dtype and on its device.
        conversations: best those it was not trained on; every offset sees the same blocks of each.
        offsets: layers by which features are moved; those beyond the target's depth are left out and named.
        on_text: called before every text of every offset with how many are done and how many there are; what it
            raises ends the check there.

    Raises:
        UserError: too few conversations, or no offset but 0 lies within the target.
    """
    draft.check_target(target)
    usable = [item for item in conversations if item.supervised >= 2]
    if len(usable) < _MIN_CONVERSATIONS:
        raise UserError(f"{len(usable)} usable conversations say too little: give {_MIN_CONVERSATIONS} or more.")
    ids = draft.config.target_layer_ids
    inside = [o for o in offsets if 0 <= min(ids) + o and max(ids) + o < target.num_layers]
    if not set(inside) - {0}:
        raise UserError(
            f"Layers {ids} have no neighbours in a target of {target.num_layers} layers: there is nothing to compare."
        )
    inside = sorted({0, *inside})
    rows = build_rows(usable, max_length=max(len(item.input_ids) for item in usable), packing=False)
    config = _config(draft, target, num_anchors)
    bar = tqdm(total=len(inside) * len(rows), unit="text", desc="layers", disable=not progress)
    total, numbers = len(inside) * len(rows), count()

    def tick() -> None:
        on_text(next(numbers), total)
        bar.update()

    with bar:
        measured = {o: _measure(draft, target, config, rows, [i + o for i in ids], seed, tick) for o in inside}
    return LayersReport(
        tuple(_summarise(o, ids, measured, seed) for o in inside),
        len(rows),
        int(sum(statistics.count[1] for statistics in measured[0])),
        tuple(sorted(set(offsets) - set(inside))),
    )


def _config(draft: DFlashDraft, target: TargetModel, num_anchors: int) -> TrainConfig:
    tree = {
        "data": {"train": ["given"]},
        "draft": {"block_size": draft.config.block_size},
        "blocks": {"num_anchors": num_anchors},
        "run": {"autocast": target.dtype == torch.bfloat16},
    }
    return parse_config(tree, "of the layer check")


def _measure(
    draft: DFlashDraft,
    target: TargetModel,
    config: TrainConfig,
    rows: Sequence[Row],
    layer_ids: Sequence[int],
    seed: int,
    tick: Callable[[], None],
) -> list[BlockStatistics]:
    """Statistics of each conversation, by the trainer's own step."""
    prepare = MicroBatchPreparer(InProcessFeatures(target, layer_ids), target.device)
    step = DraftStep(draft, target, config, target.device)
    statistics = []
    for index, row in enumerate(rows):
        tick()
        generators = row_generators(seed, "layers", range(index, index + 1))
        statistics.append(step(prepare([row]), generators)[1])
    return statistics


def _summarise(
    offset: int, layer_ids: Sequence[int], measured: dict[int, list[BlockStatistics]], seed: int
) -> LayerRow:
    statistics, reference = measured[offset], measured[0]
    everything = torch.ones(1, len(statistics))
    loss, tau = _loss(statistics, everything), _tau(statistics, everything)
    correct = sum(s.correct[1] for s in statistics) / sum(s.count[1] for s in statistics).clamp(min=1)
    increase = decrease = None
    if offset != 0:
        # The same draws for both offsets: what a conversation does to both cancels out.
        draws = _resampled(len(statistics), seed)
        increase = _difference(loss - _loss(reference, everything), _loss(statistics, draws) - _loss(reference, draws))
        decrease = _difference(_tau(reference, everything) - tau, _tau(reference, draws) - _tau(statistics, draws))
    layers = tuple(i + offset for i in layer_ids)
    return LayerRow(offset, layers, loss.item(), tau.item(), float(correct), increase, decrease)


def _resampled(count: int, seed: int) -> torch.Tensor:
    """[R, C]: how often each of `count` conversations was drawn in each of R draws of `count`, with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, count, (_RESAMPLES, count), generator=generator)
    return torch.zeros(_RESAMPLES, count).scatter_add_(1, drawn, torch.ones(_RESAMPLES, count))


def _loss(statistics: Sequence[BlockStatistics], draws: torch.Tensor) -> torch.Tensor:
    """[R] pooled loss of draws [R, C]."""
    losses = torch.stack([s.weighted_loss for s in statistics]).float().cpu()
    weights = torch.stack([s.weight for s in statistics]).float().cpu()
    return (draws @ losses) / (draws @ weights)


def _tau(statistics: Sequence[BlockStatistics], draws: torch.Tensor) -> torch.Tensor:
    """[R] pooled tau estimate of draws [R, C]."""
    prefix = torch.stack([s.prefix[1:] for s in statistics]).float().cpu()
    count = torch.stack([s.count[1:] for s in statistics]).float().cpu()
    return 1 + ((draws @ prefix) / (draws @ count).clamp(min=1)).sum(-1)


def _difference(value: torch.Tensor, resampled: torch.Tensor) -> Difference:
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Difference(value.item(), low, high)
