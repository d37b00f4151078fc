"""Ranks in real gloo processes: the same curve however many share the work, every strategy, every optimizer."""

import json
import textwrap

import pytest
import torch

from dflash.blocks.attention import FlexAttention
from dflash.blocks.plan import plan_blocks
from dflash.config import ParallelConfig
from dflash.errors import UserError
from dflash.features.micro_batch import MicroBatchPreparer
from dflash.features.source import open_source
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.training.muon import Muon
from dflash.training.order import DataOrder, row_generators, validation_portions
from dflash.training.parallel import check_parallel, prepare_draft
from dflash.training.step import DraftStep
from dflash.training.trainer import train
from dflash.training.world import World
from tiny_runs import ALONE, metrics, open_trainer, tiny_config, torchrun, weights, write_conversations

# Every rank trains the runs that are asked for, one after the other: starting processes is the dear part.
RANKS = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from dflash.config import TrainConfig
    from dflash.training.trainer import train
    from dflash.training.world import joined
    here = Path(sys.argv[1])
    plans = {name: TrainConfig.model_validate_json((here / f"{name}.json").read_text()) for name in sys.argv[2:]}
    with joined(next(iter(plans.values()))):
        for name, config in plans.items():
            train(config, here / name, progress=False)
""")

HALF = {"target": {"dtype": "bfloat16"}, "run": {"autocast": True}, "parallel": {"reduce_dtype": "bfloat16"}}


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    talk = write_conversations(tmp_path / "talk.jsonl", 16)

    def build(**sections):
        sections["run"] = {"max_steps": 4, "batch_size": 4, "autocast": False, **sections.get("run", {})}
        sections["data"] = {"train": [talk], "validation_size": 3, "max_length": 128, **sections.get("data", {})}
        return tiny_config(tiny_target_folder, talk, **sections)

    return build


def on_ranks(tmp_path, ranks, **plans):
    for name, config in plans.items():
        (tmp_path / f"{name}.json").write_text(config.model_dump_json(exclude_unset=True))
    result = torchrun(ranks, RANKS, tmp_path, *plans)
    assert result.returncode == 0, result.stderr[:6000]


def assert_same_curve(one, other, tolerance=1e-6):
    a, b = ([line for line in metrics(run) if line["kind"] != "decode"] for run in (one, other))
    assert [(x["kind"], x["step"]) for x in a] == [(x["kind"], x["step"]) for x in b]
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=tolerance, abs=0), (x["kind"], x["step"])
        assert x["slot_count"] == y["slot_count"], "the same anchors"
        if x["kind"] == "train":
            assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=10 * tolerance)
            assert x["tokens"] == y["tokens"]


@pytest.mark.slow
def test_the_loss_curve_is_the_same_on_one_and_four_ranks_and_with_every_strategy(config, tmp_path):
    settings = config()
    train(settings, tmp_path / "one", progress=False)
    on_ranks(
        tmp_path,
        4,
        four=settings,
        replicate=config(parallel={"strategy": "replicate"}),
        hybrid=config(parallel={"strategy": "hybrid", "shard_size": 2}),
        muon=config(optimizer={"name": "muon", "ema_decay": 0.9}),
        half=config(**HALF),
    )
    for name in ("four", "replicate", "hybrid"):
        assert_same_curve(tmp_path / "one", tmp_path / name)
    whole = weights(tmp_path / "one/checkpoints/step_0000004/draft")
    for name, weight in weights(tmp_path / "four/checkpoints/step_0000004/draft").items():
        assert torch.allclose(weight, whole[name], atol=1e-3), name

    train(config(optimizer={"name": "muon", "ema_decay": 0.9}), tmp_path / "muon-alone", progress=False)
    # Newton-Schulz runs in bf16, which a difference in the last fp32 bit may push to the neighbouring value.
    assert_same_curve(tmp_path / "muon-alone", tmp_path / "muon", tolerance=1e-3)
    train(config(**HALF), tmp_path / "half-alone", progress=False)
    assert_same_curve(tmp_path / "half-alone", tmp_path / "half", tolerance=5e-3)


INCIDENTS = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import torch
    from dflash.config import TrainConfig
    from dflash.errors import UserError
    from dflash.training import trainer as module
    from dflash.training.world import joined
    here = Path(sys.argv[1])
    config = TrainConfig.model_validate_json((here / "config.json").read_text())
    accumulate, after_step = module.Trainer._accumulate, module.Trainer._after_step

    def one_rank_fails(self, micro_batches):
        pooled = accumulate(self, micro_batches)
        if self.world.rank == 1 and self.state.batches == 1:
            next(self.draft.parameters()).grad.fill_(float("nan"))
        return pooled

    def one_rank_is_asked_to_stop(self):
        after_step(self)
        if self.world.rank == 1 and self.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def cannot_write(*_):
        raise OSError(28, "No space left on device")

    with joined(config) as world:
        module.train(config, here / "two", progress=False)
        module.Trainer._accumulate = one_rank_fails
        module.train(config, here / "skipped", progress=False)
        module.Trainer._accumulate = accumulate
        module.Trainer._after_step = one_rank_is_asked_to_stop
        module.train(config, here / "stopped", progress=False)
        module.Trainer._after_step = after_step
        if world.rank == 1:
            import dflash.training.checkpoint as checkpoint
            checkpoint.describe = cannot_write
        try:
            module.train(config, here / "full", progress=False)
        except UserError as error:
            (here / f"said-by-{world.rank}").write_text(str(error))
        else:
            raise SystemExit("a save that one rank could not make was taken for complete")
        world.on_main((here / "talk.jsonl").unlink)
        try:
            module.train(config, here / "no-data", progress=False)
        except UserError as error:
            (here / f"missed-by-{world.rank}").write_text(str(error))
""")


@pytest.mark.slow
def test_two_ranks_have_the_curve_of_one_and_what_happens_to_one_of_them_is_agreed_by_both(config, tmp_path):
    settings = config(metrics={"decode_every": 2, "decode_count": 1, "decode_tokens": 6})
    (tmp_path / "config.json").write_text(settings.model_dump_json(exclude_unset=True))
    train(settings, tmp_path / "one", progress=False)
    result = torchrun(2, INCIDENTS, tmp_path)
    assert result.returncode == 0, result.stderr[:6000]
    assert_same_curve(tmp_path / "one", tmp_path / "two")

    logged = metrics(tmp_path / "skipped", "train")
    assert [line["skipped"] for line in logged] == [False, True, False, False, False]
    assert [line["step"] for line in logged] == [1, 1, 2, 3, 4]
    assert len(logged[1]["conversations"]) == 4, "the rows of both ranks are suspects"
    decoded = metrics(tmp_path / "skipped", "decode")
    assert [line["step"] for line in decoded] == [2, 4] and all(line["decoded_tau"] >= 1 for line in decoded)

    status = json.loads((tmp_path / "stopped/status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 3), "the step under way is finished by all"
    assert (tmp_path / "stopped/checkpoints/step_0000003").is_dir()

    said = {(tmp_path / f"said-by-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1 and "step_0000002 could not be written" in said.pop()
    assert list((tmp_path / "full/checkpoints").iterdir()) == []
    assert "No space left" in json.loads((tmp_path / "full/status.json").read_text())["reason"]

    missed = {(tmp_path / f"missed-by-{rank}").read_text() for rank in (0, 1)}
    assert len(missed) == 1 and "talk.jsonl" in missed.pop()


def test_rows_of_a_step_are_shared_without_overlap_or_gap(config):
    settings = config(run={"batch_size": 12, "micro_batch_size": 2})
    rows = list(range(40))  # stand-ins: only their order matters here
    shared = []
    for rank in range(3):
        portions = DataOrder(rows, settings, rank, 3).portions(24)
        shared += [list(next(portions).positions) for _ in range(2)]
    assert sorted(sum(shared, [])) == list(range(24, 36))
    assert shared[:2] == [[24, 25], [30, 31]] and shared[2] == [26, 27]


def test_a_batch_that_ranks_cannot_share_is_refused(config):
    with pytest.raises(UserError, match=r"run.batch_size = 4 is no multiple of .* 3 ranks: set run.batch_size=6"):
        DataOrder([], config(), 0, 3)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_held_out_rows_count_once_and_every_rank_has_as_many_micro_batches(world_size):
    ranks = [validation_portions(range(5), 2, rank, world_size) for rank in range(world_size)]
    assert len({len(portions) for portions in ranks}) == 1
    counted = [row for portions in ranks for portion, counts in portions if counts for row in portion.rows]
    assert sorted(counted) == list(range(5))


def test_anchors_belong_to_a_row_not_to_a_rank(config):
    alone = [torch.rand(3, generator=g) for g in row_generators(0, "train", range(4, 8))]
    shared = [torch.rand(3, generator=g) for p in (4, 6) for g in row_generators(0, "train", range(p, p + 2))]
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    other = row_generators(0, "validation", range(4, 5))[0]
    assert not torch.equal(alone[0], torch.rand(3, generator=other))


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["recomputed", "recomputed and compiled"])
def test_recomputed_and_compiled_layers_give_the_same_gradient_without_graph_breaks(config, tmp_path, options):
    plain = _gradients(config(), tmp_path / "plain")
    other = _gradients(config(parallel={"activation_checkpointing": True, **options}), tmp_path / "other")
    for name, gradient in plain.items():
        assert torch.allclose(gradient, other[name], rtol=1e-4, atol=1e-5), name


def test_layers_compile_without_graph_breaks_around_flex_attention(tiny_target):
    """The form that GPUs train with; its backward does not exist on a CPU, so the forward has to do."""
    torch._dynamo.reset()
    draft = DFlashDraft(DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=2, block_size=4))
    plain = draft.layers[0].forward
    draft.layers[0].forward = torch.compile(plain, fullgraph=True, backend="eager")
    ids = torch.arange(128)[None]
    plan = plan_blocks(ids, ids >= 0, block_size=4, num_anchors=32, gamma=4.0)
    inputs = torch.randn(1, 128, 32), torch.randn(1, 128, 64), plan.slot_positions, FlexAttention(plan)
    with torch.no_grad():
        compiled = draft(*inputs)
        draft.layers[0].forward = plain
        assert torch.allclose(compiled, draft(*inputs), atol=1e-5)


def _gradients(settings, path):
    """Gradients of two micro-batches of different lengths; `fullgraph` makes a graph break an error."""
    torch._dynamo.reset()
    with open_trainer(settings.model_copy(update={"parallel": ParallelConfig()}), path) as trainer:
        prepare_draft(trainer.draft, settings, ALONE, compiler="eager")
        step = DraftStep(trainer.draft, trainer.target, settings, trainer.device)
        source = open_source(settings, trainer.target, trainer.draft.config.target_layer_ids)
        prepare = MicroBatchPreparer(source, "cpu")
        for index in range(2):
            generators = row_generators(0, "train", range(1))
            weighted, _ = step(prepare([trainer.data.training[index]]), generators)
            weighted.backward()
        return {name: p.grad for name, p in trainer.draft.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "size", "said"),
    [
        (ParallelConfig(strategy="hybrid", shard_size=3), 4, "shard_size = 3 does not divide the 4 ranks"),
        (ParallelConfig(strategy="hybrid"), 4, "needs parallel.shard_size"),
    ],
)
def test_what_does_not_fit_the_ranks_is_refused(settings, size, said):
    with pytest.raises(UserError, match=said):
        check_parallel(settings, World(0, size, torch.device("cpu")))


def test_one_process_trains_without_process_group_or_sharding(config, tmp_path):
    with open_trainer(config(), tmp_path / "run") as trainer:
        assert not torch.distributed.is_initialized()
        assert all(type(p) is torch.nn.Parameter for p in trainer.draft.parameters())
        assert all("forward" not in vars(layer) for layer in trainer.draft.layers)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_on_whole_matrices_is_torchs_own_to_the_last_bit(shape):
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    pair = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
        assert torch.equal(ours, theirs)


LEAVING = textwrap.dedent("""
    import sys, weakref
    from pathlib import Path
    from dflash.config import TrainConfig
    from dflash.errors import UserError
    from dflash.training.world import joined

    def refuse():
        raise UserError("no")

    with joined(TrainConfig.model_validate_json((Path(sys.argv[1]) / "config.json").read_text())) as world:
        groups = [weakref.ref(group) for group in (world.control, world.saving)]
        try:
            world.on_main(refuse)
        except UserError as error:
            kept = error  # and with it every frame that saw the world
    assert [group() for group in groups] == [None, None]
""")


def test_no_process_group_outlives_the_training_even_where_an_error_does(config, tmp_path):
    (tmp_path / "config.json").write_text(config().model_dump_json(exclude_unset=True))
    result = torchrun(2, LEAVING, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
