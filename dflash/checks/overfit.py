"""Train on one conversation until decoding accepts a full block of it: what cannot learn one text learns none.

Everything is real: the target answers the prompt, the answer goes through template and mask, the trainer's own step
trains a new draft on it, and the engine decodes the same prompt with that draft. The answer is the target's own, since
what decoding verifies against is what the target says, not what somebody else once wrote.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from dflash.config import MetricsConfig, TrainConfig, parse_config
from dflash.data.conversations import Conversation
from dflash.data.rows import build_rows
from dflash.data.template import Rendered, render
from dflash.decoding.comparison import first_difference
from dflash.decoding.engine import Engine
from dflash.decoding.prompt import render_prompt
from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.features.micro_batch import MicroBatchPreparer
from dflash.model.draft import DFlashDraft
from dflash.objectives.cross_entropy import BlockStatistics
from dflash.target import TargetModel
from dflash.training.decoded_tau import DecodedTau, decoding_copy
from dflash.training.draft_start import start_draft
from dflash.training.optimizer import build_optimizers, scale_and_clip, set_learning_rate
from dflash.training.order import row_generators
from dflash.training.step import DraftStep
from dflash.training.world import World

_WARM_UP_STEPS = 10
_LEARNT = 0.5  # share of whole blocks right in training from which decoding has to get one right, too


@dataclass(frozen=True)
class OverfitSettings:
    """The draft to train and for how long; the text is `answer_tokens` long at most."""

    num_hidden_layers: int = 2
    num_features: int = 5
    block_size: int = 8
    init: str = "random"
    max_steps: int = 200
    every: int = 10  # steps between decodings
    lr: float = 1e-3
    answer_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if self.answer_tokens < 2 * self.block_size:
            raise UserError(
                f"answer_tokens {self.answer_tokens} leaves no room for a full block of {self.block_size} behind the "
                f"first one: give {2 * self.block_size} or more."
            )


@dataclass(frozen=True)
class OverfitPoint:
    """After `step` steps: loss, shares of slots and of whole blocks right in training, and what decoding accepts."""

    step: int
    loss: float
    slots_right: float
    blocks_right: float
    tau: float
    longest: int  # most drafted tokens accepted in one step


@dataclass(frozen=True)
class OverfitReport:
    conversation: str
    prompt_tokens: int
    answer: str
    block_size: int
    points: tuple[OverfitPoint, ...]
    reason: str  # why the gate failed, in words; empty when it is passed

    @property
    def passed(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class _Lesson:
    """The prompt, what the target says to it, and both as training sees them."""

    prompt: list[int]
    answer: list[int]
    text: str
    rendered: Rendered


def check_overfit(
    target: TargetModel,
    conversation: Conversation,
    settings: OverfitSettings = OverfitSettings(),
    *,
    progress: bool = True,
    on_point: Callable[[OverfitPoint], None] | None = None,
) -> OverfitReport:
    """Run the gate; it ends with the first full block that decoding accepts, or after `max_steps`.

    Args:
        conversation: its last answer is replaced by the target's own.
        on_point: called after every decoding.

    Raises:
        UserError: the conversation cannot be rendered, or the target's answer is shorter than two blocks.
    """
    config = _config(target, settings)
    lesson = _lesson(target, conversation, settings)
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        draft = start_draft(config, target, [lesson.rendered.input_ids], World(0, 1, target.device)).train()
    decoded = DecodedTau(config.metrics, target, [lesson.prompt])
    points: list[OverfitPoint] = []
    with tqdm(total=settings.max_steps, unit="step", desc="overfit", disable=not progress) as bar:
        for step, statistics in enumerate(_training(draft, target, lesson, config, settings), 1):
            bar.update()
            if step % settings.every and step < settings.max_steps:
                continue
            points.append(_point(step, statistics, decoded.measure(draft)))
            bar.set_postfix(loss=f"{points[-1].loss:.3f}", tau=f"{points[-1].tau:.2f}", longest=points[-1].longest)
            if on_point is not None:
                on_point(points[-1])
            if points[-1].longest == draft.config.block_size - 1:
                break
    reason = "" if points[-1].longest == draft.config.block_size - 1 else _explain(draft, target, lesson, points)
    return OverfitReport(
        conversation.id, len(lesson.prompt), lesson.text, draft.config.block_size, tuple(points), reason
    )


def _config(target: TargetModel, settings: OverfitSettings) -> TrainConfig:
    tree = {
        "data": {"train": ["one conversation"]},
        "draft": {
            "num_hidden_layers": settings.num_hidden_layers,
            "num_features": settings.num_features,
            "block_size": settings.block_size,
            "init": settings.init,
        },
        "optimizer": {"lr": settings.lr, "min_lr": 0.0},
        "run": {"autocast": target.dtype == torch.bfloat16},
    }
    config = parse_config(tree, "of the overfit check")
    config.metrics = MetricsConfig(decode_tokens=settings.answer_tokens, decode_seconds=600)
    return config


def _lesson(target: TargetModel, conversation: Conversation, settings: OverfitSettings) -> _Lesson:
    messages = conversation.messages
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"Conversation {conversation.id!r} has no question: give one that begins with the user.")
    prompt = render_prompt(target, messages, max_new_tokens=settings.answer_tokens)
    # In the block's shape, because that is what a verified block equals to the last bit.
    trace = (
        Engine(target)
        .decode_target(
            prompt, max_new_tokens=settings.answer_tokens, shape="block", block_size=settings.block_size
        )
        .finish()
    )
    answer = trace.tokens[:-1] if trace.stopped else trace.tokens
    if len(answer) < 2 * settings.block_size:
        raise UserError(
            f"The target answers conversation {conversation.id!r} with {len(answer)} tokens, too few for two blocks of "
            f"{settings.block_size}: give another conversation or a smaller block size."
        )
    text = target.tokenizer.decode(answer, skip_special_tokens=True)
    said = replace(conversation, messages=[*messages, {"role": "assistant", "content": text}], finished=trace.stopped)
    return _Lesson(prompt, answer, text, render(said, target.tokenizer, last_turn_only=True))


def _training(
    draft: DFlashDraft, target: TargetModel, lesson: _Lesson, config: TrainConfig, settings: OverfitSettings
):
    """Train without end on the one row, with other anchors in each step; yields the statistics of each."""
    rows = build_rows([lesson.rendered], max_length=len(lesson.rendered.input_ids), packing=False)
    features = MicroBatchPreparer(InProcessFeatures(target, draft.config.target_layer_ids), target.device)(rows)
    run_step = DraftStep(draft, target, config, target.device)
    optimizers = build_optimizers(draft, config.optimizer)
    for step in range(settings.max_steps):
        set_learning_rate(optimizers, settings.lr * min(1.0, (step + 1) / _WARM_UP_STEPS))
        weighted, statistics = run_step(
            features, row_generators(settings.seed, "overfit", range(step, step + 1))
        )
        weighted.backward()
        scale_and_clip(draft, 1 / statistics.weight.clamp(min=1e-12), config.optimizer.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield statistics


def _point(step: int, statistics: BlockStatistics, decoded: dict) -> OverfitPoint:
    reached = decoded["decoded_reached"]
    return OverfitPoint(
        step=step,
        loss=statistics.summary()["loss"],
        slots_right=float(statistics.correct.sum() / statistics.count.sum().clamp(min=1)),
        blocks_right=statistics.summary()["slot_prefix"][-1],
        tau=decoded["decoded_tau"] or 1.0,
        longest=sum(count > 0 for count in reached),
    )


def _explain(draft: DFlashDraft, target: TargetModel, lesson: _Lesson, points: Sequence[OverfitPoint]) -> str:
    """What a failure most likely means."""
    last, drafted = points[-1], draft.config.block_size - 1
    text = lesson.rendered.input_ids
    seen = [*lesson.prompt, *lesson.answer]
    parted = first_difference(text[: len(seen)], seen)
    if parted is not None and parted < len(lesson.prompt) + draft.config.block_size:
        where = "before the answer" if parted < len(lesson.prompt) else "in the answer"
        return (
            f"Training and decoding do not see the same text: their tokens part at {parted}, {where}. Look at the chat "
            "template and its generation prompt."
        )
    if last.blocks_right < _LEARNT:
        return (
            f"After {last.step} steps on one text {last.blocks_right:.0%} of the draft's blocks are right in training "
            f"(loss {points[0].loss:.2f} at first, {last.loss:.2f} at last): it does not learn. Give it more steps or "
            "another learning rate; if the loss hardly falls, look at the loss mask, the optimizer and the gradients."
        )
    found = (
        f"In training {last.blocks_right:.0%} of the blocks are right, but decoding accepts {last.longest} of {drafted}"
        " tokens at most"
    )
    shift = _shift(draft, target, lesson)
    if shift:
        return f"{found}: what it proposes is the target's text moved by {shift:+d}. Look at the labels of the slots."
    return (
        f"{found}: training and decoding disagree. Look at the layers that features come from, the mask (does a block"
        " see its anchor's own feature?), the positions and the mask token."
    )


def _shift(draft: DFlashDraft, target: TargetModel, lesson: _Lesson) -> int | None:
    """By how many places proposals are off the text they should continue, if they are always off by the same."""
    stream = Engine(target, decoding_copy(draft, target)).decode_draft(
        lesson.prompt, max_new_tokens=len(lesson.answer)
    )
    trace = stream.finish()
    text, at, hits, total = trace.tokens, 1, {-1: 0, 1: 0}, 0
    for step in trace.decode_steps:
        total += len(step.proposed) - 1
        for shift in hits:
            # Compared without the first proposal: moved by -1 that would be the anchor itself.
            expected = text[at + 1 + shift : at + len(step.proposed) + shift]
            hits[shift] += sum(a == b for a, b in zip(step.proposed[1:], expected, strict=False))
        at += len(step.emitted)
    best = max(hits, key=hits.get)
    return best if total and hits[best] > total / 2 else None
