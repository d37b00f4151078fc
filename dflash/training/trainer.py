"""The single-process trainer: anchors -> blocks -> draft -> weighted loss -> statistics -> step."""

import math
import random
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from dflash.blocks.attention import ATTENTION_FORMS, default_attention_form
from dflash.blocks.plan import BlockPlan, plan_blocks
from dflash.config import TrainConfig
from dflash.data.conversations import read_conversations
from dflash.data.sampler import ShuffledSampler
from dflash.data.template import Rendered, render
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.objectives.cross_entropy import BlockStatistics, decayed_cross_entropy
from dflash.target import TargetModel
from dflash.training.checkpoint import CheckpointStore, TrainerState, generator_state, restore_generator
from dflash.training.optimizer import build_optimizers, scale_and_clip, set_learning_rate
from dflash.training.run_folder import RunFolder
from dflash.training.schedule import learning_rate
from dflash.training.warm_start import warm_start

_TILE = 128  # rows and columns of FlexAttention's tiles
_MAX_SKIPPED = 5  # consecutive non-finite steps after which the run stops


def train(config: TrainConfig, run_dir: Path | str, *, resume: bool = False, progress: bool = True) -> Path:
    """Train a draft in `run_dir` and return the folder of the final draft.

    Raises:
        UserError: bad data, an existing run without `resume`, a damaged checkpoint, a full disk.
    """
    run = RunFolder.resume(run_dir, config) if resume else RunFolder.create(run_dir, config)
    trainer = None
    with run.locked():
        try:
            trainer = Trainer(config, run)
            finished = trainer.fit(progress)
        except BaseException as error:
            step = trainer.state.step if trainer else None
            with suppress(OSError):  # on a full disk the reason for the failure is what the user must see
                run.set_status("failed", step=step, reason=f"{type(error).__name__}: {error}")
            raise
        run.set_status("finished" if finished else "stopped", step=trainer.state.step)
        return trainer.store.latest() / "draft"


class Trainer:
    """Holds one run's parts; `fit` is the loop and `_micro_step` the algorithm."""

    def __init__(self, config: TrainConfig, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.device = torch.device(config.run.device)
        torch.manual_seed(config.run.seed)
        self.target = TargetModel.load(config.target.name, dtype=config.target.dtype, device=self.device)
        self.training, self.validation = self._load_data()
        self.store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
        latest = self.store.latest()
        self.draft = self._build_draft(latest)
        self.features = lambda ids: self.target.features(ids, self.draft.config.target_layer_ids)
        self.optimizers = build_optimizers(self.draft, config.optimizer)
        self.sampler = ShuffledSampler(len(self.training), config.run.seed)
        self.generator = torch.Generator(self.device).manual_seed(config.run.seed)
        form = config.blocks.attention
        self.attention_form = ATTENTION_FORMS[default_attention_form(self.device) if form == "auto" else form]
        self.state = TrainerState(optimizer=config.optimizer.name, device=self.device.type)
        self._stop_requested = False
        if latest is not None:
            self.state = self.store.load(latest, self.draft, self.optimizers, self.state)
            restore_generator(self.generator, self.state.rng)
        self.run.cut_metrics(self.state.batches)

    def fit(self, progress: bool = True) -> bool:
        """Run to the last step or to SIGTERM/SIGINT; True when finished. Both ways end with a checkpoint."""
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        settings, skipped = self.config.run, 0
        self.run.set_status("running", step=self.state.step, max_steps=settings.max_steps)
        try:
            with tqdm(
                total=settings.max_steps, initial=self.state.step, unit="step", disable=not progress, desc="train"
            ) as bar:
                while self.state.step < settings.max_steps and not self._stop_requested:
                    if self._step(bar):
                        skipped = 0
                        self._after_step(bar)
                        continue
                    skipped += 1
                    if skipped == _MAX_SKIPPED:
                        raise UserError(
                            f"{_MAX_SKIPPED} steps in a row had a non-finite loss or gradient (metrics.jsonl names the "
                            "conversations): lower optimizer.lr and start again from the last checkpoint."
                        )
            if self._stop_requested:
                self._save(False)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.state.step >= settings.max_steps

    def _after_step(self, bar: tqdm) -> None:
        """Validate and save when it is time."""
        settings, step = self.config.run, self.state.step
        last = step == settings.max_steps
        improved = (last or step % self.config.metrics.validate_every == 0) and self._validate(bar)
        if improved or last or step % self.config.checkpoint.every == 0:
            self._save(improved)

    def _step(self, bar: tqdm) -> bool:
        """One optimizer step over `batch_size` conversations; False when it was skipped as non-finite."""
        config, started = self.config, time.perf_counter()
        rate = learning_rate(
            self.state.step, config.run.max_steps, config.optimizer.lr, config.optimizer.min_lr, config.schedule
        )
        set_learning_rate(self.optimizers, rate)
        first = self.state.batches * config.run.batch_size
        batch = [self.training[self.sampler[first + i]] for i in range(config.run.batch_size)]
        pooled: BlockStatistics | None = None
        for sample in batch:
            weighted, statistics = self._micro_step(sample, self.generator)
            weighted.backward()
            pooled = statistics if pooled is None else pooled + statistics
        # The loss is a mean over the weights of the whole step, not a mean of per-conversation means.
        norm = scale_and_clip(self.draft, 1 / pooled.weight.clamp(min=1e-12), config.optimizer.clip)
        finite = bool(torch.isfinite(norm) & torch.isfinite(pooled.weighted_loss))
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        # A skipped batch is consumed, but the schedule waits for it to be made up.
        self.state.batches += 1
        self.state.step += finite
        self._log_step(bar, pooled, batch, finite, rate, norm, time.perf_counter() - started)
        return finite

    def _micro_step(
        self, sample: Rendered, generator: torch.Generator
    ) -> tuple[torch.Tensor, BlockStatistics]:
        """The algorithm on one conversation: weighted loss sum and statistics."""
        config = self.draft.config
        ids, loss_mask, num_anchors = self._inputs(sample)
        plan = plan_blocks(
            ids,
            loss_mask,
            block_size=config.block_size,
            num_anchors=num_anchors,
            gamma=self.config.gamma,
            generator=generator,
        )
        hidden = self._draft_hidden(ids, plan)
        return decayed_cross_entropy(hidden, self.target.lm_head.weight, plan)

    def _inputs(self, sample: Rendered) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Tokens [1, S], loss mask [1, S] and number of anchor slots.

        Compiled kernels want few shapes: on a GPU texts are padded to whole tiles (behind every anchor, so nothing sees
        the padding) and the number of slots is fixed. On a CPU empty slots would only cost time.
        """
        ids, mask, slots = sample.input_ids, sample.loss_mask, self.config.blocks.num_anchors
        if self.device.type == "cpu":
            slots = min(slots, sample.supervised)
        else:
            padding = -len(ids) % _TILE
            ids, mask = ids + [0] * padding, mask + [False] * padding
        return torch.tensor([ids], device=self.device), torch.tensor([mask], device=self.device), slots

    def _draft_hidden(self, ids: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
        features = self.features(ids).detach()
        with torch.no_grad():
            embeddings = self.target.embedding(plan.slot_inputs(ids, self.draft.config.mask_token_id))
        attend = self.attention_form(plan, self.draft.config.sliding_window)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.autocast):
            if not self.config.run.autocast:
                features = features.float()
            return self.draft(embeddings, features, plan.slot_positions, attend)

    @torch.no_grad()
    def _validate(self, bar: tqdm) -> bool:
        """Statistics on the held-out conversations with fixed anchors; True when the loss is the best so far."""
        generator = torch.Generator(self.device).manual_seed(self.config.run.seed)
        pooled: BlockStatistics | None = None
        for sample in self.validation:
            _, statistics = self._micro_step(sample, generator)
            pooled = statistics if pooled is None else pooled + statistics
        summary = pooled.summary()
        self.run.append_metrics({"step": self.state.step, "batch": self.state.batches, "kind": "validation", **summary})
        bar.set_postfix(val=f"{summary['loss']:.3f}", val_tau=f"{summary['tau_estimate']:.2f}")
        if not math.isfinite(summary["loss"]):
            return False
        improved = self.state.best_loss is None or summary["loss"] < self.state.best_loss
        if improved:
            self.state.best_loss = summary["loss"]
        return improved

    def _log_step(self, bar, pooled, batch, finite, rate, norm, seconds) -> None:
        bar.update(int(finite))
        tokens = sum(len(sample.input_ids) for sample in batch)
        record = {
            "step": self.state.step,
            "batch": self.state.batches,
            "kind": "train",
            "lr": rate,
            "grad_norm": float(norm),
            "skipped": not finite,
        }
        if not finite:
            self.run.append_metrics({**record, "conversations": [sample.id for sample in batch]})
        elif self.state.step % self.config.metrics.log_every == 0:
            summary = pooled.summary()
            self.run.append_metrics({**record, **summary, "tokens": tokens, "tokens_per_s": tokens / seconds})
            self.run.set_status("running", step=self.state.step, max_steps=self.config.run.max_steps)
            bar.set_description(f"train loss {summary['loss']:.3f} tau~{summary['tau_estimate']:.2f}")

    def _save(self, is_best: bool) -> None:
        self.state = replace(self.state, rng=generator_state(self.generator))
        self.store.save(self.draft, self.optimizers, self.state, is_best)

    def _request_stop(self, _signal, _frame) -> None:
        self._stop_requested = True

    def _load_data(self) -> tuple[list[Rendered], list[Rendered]]:
        data = self.config.data
        rendered = []
        for path in data.train:
            for conversation in read_conversations(path):
                item = render(conversation, self.target.tokenizer, data.max_length)
                if item.supervised >= data.min_supervised:
                    rendered.append(item)
        if len(rendered) <= data.validation_size:
            raise UserError(
                f"Only {len(rendered)} usable conversations in {', '.join(data.train)}: more than "
                f"data.validation_size = {data.validation_size} are needed."
            )
        held_out = set(self.run.held_out_ids(lambda: self._choose_held_out(rendered)))
        training = [item for item in rendered if item.id not in held_out]
        return training, [item for item in rendered if item.id in held_out]

    def _choose_held_out(self, rendered: list[Rendered]) -> list[str]:
        chosen = random.Random(self.config.run.seed).sample(rendered, self.config.data.validation_size)
        return [item.id for item in chosen]

    def _build_draft(self, latest: Path | None) -> DFlashDraft:
        """The draft of a run's newest checkpoint (its weights follow in full precision), or a new one as configured."""
        wanted = self.config.draft
        if latest is not None:
            return DFlashDraft.from_pretrained(latest / "draft", dtype="float32", device=self.device).train()
        if wanted.init not in ("random", "warm"):
            return self._continue_draft(wanted.init)
        draft_config = DFlashConfig.for_target(
            self.target,
            num_hidden_layers=wanted.num_hidden_layers,
            num_features=wanted.num_features,
            block_size=wanted.block_size,
            target_layer_ids=wanted.target_layer_ids,
            mask_token_id=wanted.mask_token_id,
            sliding_window=wanted.sliding_window,
            intermediate_size=wanted.intermediate_size,
        )
        draft = DFlashDraft(draft_config).to(self.device)
        if wanted.init == "warm":
            warm_start(draft, self.target, self.training[0].input_ids)
        return draft

    def _continue_draft(self, folder: str) -> DFlashDraft:
        draft = DFlashDraft.from_pretrained(folder, dtype="float32", device=self.device).train()
        draft.check_target(self.target)
        # A resolved config spells out every default, so only a setting that differs from its default was asked for.
        for name, field in type(self.config.draft).model_fields.items():
            asked = getattr(self.config.draft, name)
            if name not in ("init", "type") and asked not in (None, field.default, getattr(draft.config, name)):
                has = getattr(draft.config, name)
                raise UserError(f"draft.{name} = {asked} contradicts the draft in {folder!r}, which has {has}.")
        return draft
