"""The training loop, for one process or for all ranks that torchrun started.

The algorithm itself is in `step.py`; who shares what is in `parallel.py`; which rows come when is in `order.py`.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from signal import SIGINT, SIGTERM, signal

import torch

from dflash.config import TrainConfig
from dflash.errors import UserError
from dflash.features.micro_batch import MicroBatch, MicroBatchPreparer
from dflash.features.prefetch import Prefetcher
from dflash.features.source import looking_ahead, open_source, prefetch_depth
from dflash.objectives.candidates import candidate_sampler
from dflash.objectives.cross_entropy import BlockStatistics
from dflash.online.rank import is_launched
from dflash.target import TargetModel
from dflash.training.checkpoint import CheckpointStore, Contents, TrainerState
from dflash.training.draft_start import resumed_draft, start_draft, with_shape
from dflash.training.ema import WeightAverage
from dflash.training.export import DraftExport
from dflash.training.measuring import DECODE, Measurements
from dflash.training.optimizer import build_optimizers, scale_and_clip, set_learning_rate
from dflash.training.order import DataOrder, Portion, row_generators, total_steps
from dflash.training.parallel import prepare_draft, sync_gradients
from dflash.training.reporter import Reporter
from dflash.training.run_data import digest, load_run_data
from dflash.training.run_folder import RunFolder
from dflash.training.saver import BackgroundSaver
from dflash.training.schedule import learning_rate
from dflash.training.speed import SpeedWindow, speed_record
from dflash.training.step import TILE, DraftStep, pool_over_ranks
from dflash.training.training_state import TrainingState, host_copy
from dflash.training.world import World, joined

MicroBatches = Prefetcher[Portion, tuple[Portion, MicroBatch]]

_MAX_SKIPPED = 5  # consecutive non-finite steps after which the run stops


def train(config: TrainConfig, run_dir: Path | str, *, resume: bool = False, progress: bool = True) -> Path:
    """Train a draft in `run_dir` and return the folder of the final draft. Every rank calls it; rank 0's folder counts.

    Raises:
        UserError: bad data, an existing run without `resume`, a damaged checkpoint, a full disk.
    """
    with joined(config) as world, _opened(config, RunFolder(run_dir), resume, world) as run:
        trainer = None
        try:
            with Reporter(run, config, world, progress) as reporter:
                store = CheckpointStore(run.checkpoints, config.checkpoint.keep, world)
                newest = store.newest()
                if newest and newest[1].is_last(config.run.max_steps):
                    step, finished = newest[1].step, True
                    reporter.warn(f"Already finished at step {step}: give a larger run.max_steps to go on.")
                else:
                    trainer = Trainer(config, run, world, reporter, store, newest)
                    finished = trainer.fit()
                    step = trainer.state.step
        except BaseException as error:
            _tell_failure(run, world, trainer.state.step if trainer else None, error)
            raise
        if world.is_main:
            run.set_status("finished" if finished else "stopped", step=step)
        world.barrier()
        return store.latest() / "draft"


@contextmanager
def _opened(config: TrainConfig, run: RunFolder, resume: bool, world: World) -> Iterator[RunFolder]:
    """The run of rank 0, locked before anything in it is written: it may be another process's that is under way."""
    with ExitStack() as stack:

        def open_it() -> Path:
            if resume:
                run.check_is_run()
            if not is_launched():  # else the launcher holds it, from before the servers start to the end
                stack.enter_context(run.locked())
            opened = RunFolder.resume if resume else RunFolder.create
            opened(run.path, config).forget_failure()
            return run.path

        yield RunFolder(world.on_main(open_it))


def _tell_failure(run: RunFolder, world: World, step: int | None, error: BaseException) -> None:
    with suppress(OSError):  # on a full disk the reason for the failure is what the user must see
        reason = f"{type(error).__name__}: {error}" if world.size == 1 else run.record_failure(world.rank, error)
        if world.is_main:
            run.set_status("failed", step=step, reason=reason)


class Trainer:
    """Holds one run's parts; `fit` is the loop over steps."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        world: World,
        reporter: Reporter,
        store: CheckpointStore,
        newest: tuple[Path, TrainerState] | None,
    ) -> None:
        """`newest`: the checkpoint of `store` to go on from, and its state."""
        self.config, self.run, self.world, self.reporter, self.store = config, run, world, reporter, store
        self.device = world.device
        torch.manual_seed(config.run.seed)
        latest, saved = newest or (None, None)
        self.target = world.main_first(lambda: self._load_target(fresh=saved is None))
        self.data = load_run_data(config, self.target, run, world)
        self.order = DataOrder(self.data.training, config, world.rank, world.size)
        self.max_steps = total_steps(config, len(self.data.training))
        texts = [row.input_ids for row in self.data.training]
        if saved is None:
            self.draft = start_draft(config, self.target, texts, world)
            self.config = config = with_shape(config, self.draft)
            world.on_main(lambda: run.record_config(config))
        else:
            self.draft = resumed_draft(config, self.target, latest, self.device)
        prepare_draft(self.draft, config, world)
        self.optimizers = build_optimizers(self.draft, config.optimizer)
        decay = config.optimizer.ema_decay
        self.average = WeightAverage(self.draft, decay) if decay is not None else None
        self.tensors = TrainingState(self.draft, self.optimizers, self.average, world.rank)
        self.state = TrainerState(
            optimizer=config.optimizer.name,
            training_rows=len(self.data.training),
            training_digest=digest(self.data.training),
            world_size=world.size,
        )
        if saved is not None:
            self._restore(latest, saved)
        wanted = config.objective.candidates
        candidates = candidate_sampler(texts, wanted, self.target.vocab_size, self.device) if wanted else None
        self.step = DraftStep(self.draft, self.target, config, self.device, candidates)
        rows = [*self.data.training, *self.data.validation]
        ids = self.draft.config.target_layer_ids
        self.source = open_source(config, self.target, ids, rows, world=world, run_dir=run.path)
        multiple = TILE if self.device.type == "cuda" else 1
        self._preparer = MicroBatchPreparer(self.source, self.device, multiple=multiple)
        self.measurements = Measurements(
            config,
            self.data,
            self.target,
            world,
            draft=self.draft,
            average=self.average,
            step=self.step,
            prepare=self._preparer,
            asked_to_stop=lambda: self._stop_requested,
        )
        self.saver = BackgroundSaver()
        self._stop_requested = False
        if world.is_main:
            run.cut_metrics(self.state.batches, self.state.pending)

    def fit(self) -> bool:
        """Run to the last step or to SIGTERM/SIGINT; True when finished. Both ways end with a checkpoint."""
        previous = {number: signal(number, self._request_stop) for number in (SIGTERM, SIGINT)}
        self.reporter.begin(self.state.step, self.max_steps)
        self.reporter.note(
            f"Training from step {self.state.step} to {self.max_steps} on {self.world.size} rank(s) of "
            f"{self.device.type}: {len(self.data.training)} rows, {len(self.data.validation)} held out."
        )
        depth = prefetch_depth(self.config.features, self.device)
        try:
            # The source is closed first: the prefetcher's thread may be waiting for it.
            with Prefetcher(self._prepare, self._portions(), depth) as micro_batches, closing(self.source):
                stopped = self._run_steps(micro_batches)
            if stopped:
                self.reporter.note(f"Asked to stop behind step {self.state.step}.")
                self._save(False)
            self.saver.wait()
        finally:
            self.saver.close()
            for number, handler in previous.items():
                signal(number, handler)
        return self.state.step >= self.max_steps and not self.state.pending

    def _run_steps(self, micro_batches: MicroBatches) -> bool:
        """Steps until the last one; True when a stop was asked for."""
        if self.state.pending and self._measure(self.state.pending):
            return True
        window, skipped = SpeedWindow(micro_batches), 0
        while self.state.step < self.max_steps:
            finite, stop = self._step(micro_batches, window)
            if not finite:
                skipped += 1
                if skipped == _MAX_SKIPPED:
                    raise UserError(
                        f"{_MAX_SKIPPED} steps in a row had a non-finite loss or gradient (metrics.jsonl names the "
                        "conversations): lower optimizer.lr and start again from the last checkpoint."
                    )
            else:
                skipped = 0
                stop = self._after_step() or stop
                window.restart_clock()
            if stop:
                return True
        return False

    def _step(self, micro_batches: MicroBatches, window: SpeedWindow) -> tuple[bool, bool]:
        """One optimizer step of all ranks. Whether it was finite, and whether any rank was asked to stop."""
        optimizer, state = self.config.optimizer, self.state
        rate = learning_rate(state.step, self.max_steps, optimizer.lr, optimizer.min_lr, self.config.schedule)
        set_learning_rate(self.optimizers, rate)
        statistics, tokens = self._accumulate(micro_batches)
        statistics, (tokens, stops, unsaved) = pool_over_ranks(
            statistics, (tokens, self._stop_requested, self.saver.failed), self.world
        )
        # The loss is a mean over the weights of the whole step, not a mean of per-row or per-rank means.
        norm = scale_and_clip(self.draft, 1 / statistics.weight.clamp(min=1e-12), optimizer.clip)
        finite = bool(torch.isfinite(norm).cpu() & torch.isfinite(statistics.weighted_loss).cpu())
        if finite:
            for one in self.optimizers:
                one.step()
            if self.average is not None:
                self.average.update(state.step + 1)
        for one in self.optimizers:
            one.zero_grad(set_to_none=True)
        # A skipped batch is consumed, but the schedule waits for it to be made up.
        first = state.rows
        self.state = replace(
            state, step=state.step + finite, batches=state.batches + 1, rows=first + self.config.run.batch_size
        )
        self._report_step(statistics, int(tokens), finite, rate, norm, first, window)
        if unsaved:
            self.saver.wait()  # some rank's save failed, so all did, and this one raises
        return finite, stops > 0

    def _accumulate(self, micro_batches: MicroBatches) -> tuple[BlockStatistics, int]:
        """Forward and backward over this rank's micro-batches of one step: gradients are left summed, not averaged."""
        pooled: BlockStatistics | None = None
        tokens = 0
        for index in range(self.order.accumulation):
            portion, micro = next(micro_batches)
            sync_gradients(self.draft, index == self.order.accumulation - 1)
            seed = self.config.run.seed
            generators = row_generators(seed, "train", portion.positions)
            (drawing,) = row_generators(seed, "candidates", portion.positions[:1])
            weighted, statistics = self.step(micro, generators, drawing)
            weighted.backward()
            pooled = statistics if pooled is None else pooled + statistics
            tokens += sum(map(len, portion.rows))
        return pooled, tokens

    def _portions(self) -> Iterator[Portion]:
        """This rank's micro-batches from the next one on, announced to a source that fetches them from elsewhere."""
        return looking_ahead(self.source, self.order.portions(self.state.rows), lambda portion: portion.rows)

    def _prepare(self, portion: Portion) -> tuple[Portion, MicroBatch]:
        return portion, self._preparer(portion.rows)

    def _after_step(self) -> bool:
        """Validate, decode and save when it is time; True when a request to stop came in between."""
        return self._measure(self.measurements.due(self.state.step, self.state.step == self.max_steps))

    def _measure(self, kinds: list[str]) -> bool:
        """Take these measurements, and save when it is time; True when a request to stop came in between."""
        step, resumed, improved = self.state.step, bool(self.state.pending), False
        for number, kind in enumerate(kinds):
            values = self.measurements.take(kind)
            if values is None:
                self.reporter.note(f"Asked to stop: the {kind} of step {step} is left for when the run goes on.")
                self.state.pending = kinds[number:]
                if improved:
                    self._save(True)
                return True
            self.reporter.metrics(self._record(kind, **values))
            improved = self._judge(kind, values) or improved
        self.state.pending = []
        if improved or resumed or step == self.max_steps or step % self.config.checkpoint.every == 0:
            self._save(improved)
        return False

    def _judge(self, kind: str, values: dict) -> bool:
        """Tell what was measured; True when it is the best validation loss so far."""
        if kind == DECODE:
            self.reporter.note(f"Step {self.state.step}: decoded tau {values['decoded_tau']}.")
            return False
        loss, tau = values["loss"], values["tau_estimate"]
        self.reporter.show(val=f"{loss:.3f}", val_tau=f"{tau:.2f}")
        self.reporter.note(f"Step {self.state.step}: validation loss {loss:.4f}, tau~{tau:.3f}.")
        if not math.isfinite(loss) or (self.state.best_loss is not None and loss >= self.state.best_loss):
            return False
        self.state.best_loss = loss
        return True

    def _report_step(
        self,
        statistics: BlockStatistics,
        tokens: int,
        finite: bool,
        rate: float,
        norm: torch.Tensor,
        first: int,
        window: SpeedWindow,
    ) -> None:
        """Log the step that began at row position `first`; every rank calls it."""
        state = self.state
        window.add(tokens)
        self.reporter.reach(state.step, self.max_steps)
        record = self._record("train", lr=rate, grad_norm=float(norm), skipped=not finite)
        if not finite:
            names = self.order.conversations(first)
            self.reporter.metrics({**record, "conversations": names})
            self.reporter.note(f"Batch {state.batches} was skipped: its loss or gradient is not finite.")
        elif state.step % self.config.metrics.log_every == 0:
            speed, summary = window.close(), statistics.summary()
            speeds = speed_record(speed, self.source, self.world)
            self.reporter.metrics({**record, **summary, "tokens": tokens, **speeds})
            self.reporter.show(loss=f"{summary['loss']:.3f}", tau=f"{summary['tau_estimate']:.2f}")
            left = timedelta(seconds=round((self.max_steps - state.step) * speed.seconds_per_batch))
            self.reporter.note(
                f"Step {state.step} of {self.max_steps}: loss {summary['loss']:.4f}, tau~"
                f"{summary['tau_estimate']:.3f}, lr {rate:.3g}, "
                f"{self.config.run.batch_size / speed.seconds_per_batch:.3g} rows/s, {left} left."
            )

    def _record(self, kind: str, **values) -> dict:
        return {"step": self.state.step, "batch": self.state.batches, "kind": kind, **values}

    def _save(self, is_best: bool) -> None:
        self.saver.wait()  # one at a time: two would need the memory twice
        tensors, asynchronous = self.tensors.tensors(), self.config.checkpoint.asynchronous
        export = DraftExport.of(self.draft, self.average, self.world)
        contents = Contents(replace(self.state), host_copy(tensors) if asynchronous else tensors, export, is_best)
        if asynchronous:
            self.saver.submit(lambda: self._write(contents))
        else:
            self._write(contents)

    def _write(self, contents: Contents) -> None:
        path = self.store.save(contents)
        self.reporter.note(f"Checkpoint {path.name} is complete{', the best so far' if contents.is_best else ''}.")

    def _restore(self, latest: Path, saved: TrainerState) -> None:
        found = self.store.load(latest, self.tensors, saved, self.config.optimizer.name)
        if not found:
            self.reporter.note(f"{latest.name} holds no average of the weights: it starts at the weights.")
        now = self.state
        for what in ("world_size", "training_rows"):
            if getattr(saved, what) != getattr(now, what):
                self.reporter.note(
                    f"Resuming {latest.name}: {what} is {getattr(now, what)}, it was {getattr(saved, what)}; the run "
                    "goes on, but not bit for bit as it would have."
                )
        same_number = saved.training_rows == now.training_rows
        if same_number and saved.training_digest not in ("", now.training_digest):
            self.reporter.note(
                f"Resuming {latest.name}: the training rows are as many as before, but others; the run goes on, but "
                "not as it would have."
            )
        self.state = replace(
            saved,
            world_size=now.world_size,
            training_rows=now.training_rows,
            training_digest=now.training_digest,
        )

    def _load_target(self, fresh: bool) -> TargetModel:
        """The whole target only where something runs it: decoding and a warm start are rank 0's."""
        config = self.config
        runs_alone = config.metrics.decode_every is not None or (fresh and config.draft.init == "warm")
        whole = config.features.source == "in_process" or (self.world.is_main and runs_alone)
        return TargetModel.load(
            config.target.name,
            dtype=config.target.dtype,
            device=self.device,
            revision=config.target.revision,
            layers=whole,
        )

    def _request_stop(self, _signal, _frame) -> None:
        self._stop_requested = True
