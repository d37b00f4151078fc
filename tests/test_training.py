"""Training: schedule, exact resume, interruption, warm start, and that a draft really learns."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from dflash.config import DraftConfig, ScheduleConfig, load_config, parse_config
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.training.run_folder import RunFolder
from dflash.training.schedule import learning_rate
from dflash.training.trainer import Trainer, train
from dflash.training.warm_start import warm_start


@pytest.fixture
def conversations(tmp_path):
    path = tmp_path / "talk.jsonl"
    with open(path, "w") as file:
        for i in range(12):
            answer = "one two three four " * 2 + "abcdefgh"[i % 8]
            messages = [{"role": "user", "content": f"count {i}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": f"c{i}", "messages": messages}) + "\n")
    return str(path)


@pytest.fixture
def config(tiny_target_folder, conversations):
    def build(**sections):
        tree = {
            "target": {"name": tiny_target_folder, "dtype": "float32"},
            "draft": {"num_hidden_layers": 2, "num_features": 3, "block_size": 4, **sections.get("draft", {})},
            "data": {"train": [conversations], "validation_size": 2, "max_length": 128},
            "blocks": {"num_anchors": 8},
            "optimizer": sections.get("optimizer", {}),
            "run": {"max_steps": 6, "batch_size": 2, "autocast": False, **sections.get("run", {})},
            "checkpoint": {"every": 2, **sections.get("checkpoint", {})},
            "metrics": {"log_every": 1, "validate_every": 3, **sections.get("metrics", {})},
        }  # fmt: skip
        return parse_config(tree, "test")

    return build


def metrics(run_dir):
    """Everything logged except what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in lines]


def weights(folder):
    return DFlashDraft.from_pretrained(folder, dtype="float32").state_dict()


@pytest.mark.parametrize("style", ["linear", "cosine", "sqrt"])
def test_wsd_meets_its_corners(style):
    schedule = ScheduleConfig(kind="wsd", warmup_ratio=0.1, decay_ratio=0.2, decay_style=style)
    rate = [learning_rate(s, 100, 1.0, 0.1, schedule) for s in range(100)]
    assert rate[0] == pytest.approx(0.1) and rate[9] == pytest.approx(1.0), "warm-up reaches the peak on its last step"
    assert rate[10:80] == [1.0] * 70
    assert rate[80] < 1.0 and rate[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rate[10:], rate[11:]))


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_other_schedules_end_where_they_promise(kind):
    schedule = ScheduleConfig(kind=kind, warmup_ratio=0.0)
    assert learning_rate(0, 50, 1.0, 0.1, schedule) <= 1.0
    assert learning_rate(49, 50, 1.0, 0.1, schedule) == pytest.approx(1.0 if kind == "constant" else 0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_training_is_bit_identical_to_an_uninterrupted_run(config, tmp_path, optimizer):
    settings = config(optimizer={"name": optimizer})
    whole = train(settings, tmp_path / "whole", progress=False)

    run = RunFolder.create(tmp_path / "cut", settings)
    trainer = Trainer(settings, run)
    original = trainer._step

    def stop_after_three(bar):
        done = original(bar)
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    trainer._step = stop_after_three
    assert trainer.fit(progress=False) is False
    assert trainer.store.latest().name == "step_0000003"
    cut = train(settings, tmp_path / "cut", resume=True, progress=False)

    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    for (name, a), b in zip(weights(whole).items(), weights(cut).values(), strict=True):
        assert torch.equal(a, b), name


def test_kill_minus_nine_resumes_from_the_last_complete_checkpoint(config, tmp_path):
    settings = config(run={"max_steps": 8})
    whole = train(settings, tmp_path / "whole", progress=False)
    (tmp_path / "config.json").write_text(settings.model_dump_json())
    script = textwrap.dedent("""
        import os, pathlib, sys
        from dflash.config import TrainConfig
        from dflash.training import trainer as module
        here = pathlib.Path(sys.argv[1])
        step = module.Trainer._step
        def dying(self, bar):
            step(self, bar)
            if self.state.step == 5:
                os.kill(os.getpid(), 9)
            return True
        module.Trainer._step = dying
        module.train(TrainConfig.model_validate_json((here / "config.json").read_text()), here / "cut", progress=False)
    """)
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == -signal.SIGKILL
    (tmp_path / "cut/checkpoints/.step_0000006").mkdir()  # as a save cut in the middle leaves it
    cut = train(settings, tmp_path / "cut", resume=True, progress=False)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    for a, b in zip(weights(whole).values(), weights(cut).values(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "cut/checkpoints/.step_0000006").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_afresh(config, tmp_path):
    settings = config()
    whole = train(settings, tmp_path / "whole", progress=False)
    run = RunFolder.create(tmp_path / "cut", settings)
    run.append_metrics({"step": 1, "batch": 1, "kind": "train", "loss": 9.9})
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 2, "ba')
    cut = train(settings, tmp_path / "cut", resume=True, progress=False)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(cut).values(), strict=True))


def test_another_optimizer_does_not_blame_the_checkpoint(config, tmp_path):
    train(config(), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="saved with optimizer 'adamw', the config says 'muon'"):
        train(config(optimizer={"name": "muon"}), tmp_path / "run", resume=True, progress=False)


def test_a_run_that_continues_a_draft_resumes_even_when_that_draft_is_gone(config, tmp_path):
    first = train(config(), tmp_path / "first", progress=False)
    settings = config(run={"max_steps": 2})
    settings.draft = DraftConfig(init=str(first), block_size=8)
    with pytest.raises(UserError, match="block_size = 8 contradicts"):
        train(settings, tmp_path / "second", progress=False)
    settings.draft = DraftConfig(init=str(first))
    train(settings, tmp_path / "second", progress=False)
    shutil.rmtree(tmp_path / "first")
    again = load_config(tmp_path / "second/config.yaml", ["run.max_steps=4"])
    train(again, tmp_path / "second", resume=True, progress=False)
    assert load_config(tmp_path / "second/config.yaml").run.max_steps == 4, "the settings in force are recorded"
    assert load_config(tmp_path / "second/config.before-1.yaml").run.max_steps == 2


def test_a_run_under_way_is_not_trained_twice(config, tmp_path):
    settings = config()
    run = RunFolder.create(tmp_path / "run", settings)
    with run.locked(), pytest.raises(UserError, match="another process"):
        train(settings, tmp_path / "run", resume=True, progress=False)


def test_data_that_grows_never_changes_the_held_out_conversations(config, conversations, tmp_path):
    settings = config()
    train(settings, tmp_path / "run", progress=False)
    before = json.loads((tmp_path / "run/validation_ids.json").read_text())
    with open(conversations, "a") as file:
        for i in range(30):
            messages = [{"role": "user", "content": "more"}, {"role": "assistant", "content": "yes of course"}]
            file.write(json.dumps({"id": f"new{i}", "messages": messages}) + "\n")
    trainer = Trainer(settings, RunFolder(tmp_path / "run"))
    assert sorted(item.id for item in trainer.validation) == sorted(before)
    assert not set(before) & {item.id for item in trainer.training} and len(trainer.training) == 40


def test_a_full_disk_during_a_save_leaves_the_older_checkpoint_and_a_sentence(config, tmp_path, monkeypatch):
    settings = config()
    run = RunFolder.create(tmp_path / "run", settings)
    trainer = Trainer(settings, run)
    trainer.state.step = 1
    trainer._save(False)

    def no_space(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dflash.training.checkpoint.dcp.save", no_space)
    trainer.state.step = 2
    with pytest.raises(UserError, match="step_0000002.*No space left.*older checkpoints are intact"):
        trainer._save(False)
    assert [p.name for p in trainer.store.all()] == ["step_0000001"]
    assert not list((tmp_path / "run/checkpoints").glob(".step_*"))


def test_rotation_keeps_the_newest_and_the_best(config, tmp_path):
    settings = config(run={"max_steps": 10}, checkpoint={"every": 1, "keep": 2}, metrics={"validate_every": 100})
    run = RunFolder.create(tmp_path / "run", settings)
    trainer = Trainer(settings, run)
    trainer.state.step, trainer.state.best_loss = 1, 0.5
    trainer._save(True)
    for step in range(2, 6):
        trainer.state.step = step
        trainer._save(False)
    assert [p.name for p in trainer.store.all()] == ["step_0000001", "step_0000004", "step_0000005"]
    assert trainer.store.best().name == "step_0000001"


def test_a_damaged_checkpoint_is_refused_by_name(config, tmp_path):
    settings = config()
    train(settings, tmp_path / "run", progress=False)
    for shard in (tmp_path / "run/checkpoints/step_0000006/state").glob("*.distcp"):
        shard.write_bytes(b"damaged")
    with pytest.raises(UserError, match="step_0000006"):
        train(settings, tmp_path / "run", resume=True, progress=False)


def test_an_existing_run_is_never_overwritten(config, tmp_path):
    train(config(run={"max_steps": 1}), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="already holds a run"):
        train(config(), tmp_path / "run", progress=False)


def test_a_run_that_failed_before_its_first_step_says_so_and_its_name_may_be_used_again(config, tmp_path):
    settings = config(run={"max_steps": 1})
    hopeless = settings.model_copy(deep=True)
    hopeless.data.validation_size = 500
    with pytest.raises(UserError, match="Only 12 usable conversations"):
        train(hopeless, tmp_path / "run", progress=False)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed" and "Only 12 usable" in status["reason"]
    train(settings, tmp_path / "run", progress=False)


def test_training_lowers_the_loss_and_raises_the_run_of_right_slots(config, tmp_path):
    train(config(run={"max_steps": 60}, metrics={"validate_every": 60}, optimizer={"lr": 3e-3}), tmp_path / "run", progress=False)
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["tau_estimate"] > lines[0]["tau_estimate"] + 0.5


def test_non_finite_steps_are_logged_with_their_conversations_and_stop_the_run(config, tmp_path):
    settings = config(run={"max_steps": 20})
    trainer = Trainer(settings, RunFolder.create(tmp_path / "run", settings))
    trainer.features = lambda ids: torch.full((1, ids.shape[1], 96), float("nan"))
    before = {k: v.clone() for k, v in trainer.draft.state_dict().items()}
    with pytest.raises(UserError, match="non-finite"):
        trainer.fit(progress=False)
    logged = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert len(logged) == 5 and all(len(line["conversations"]) == 2 for line in logged)
    assert [line["step"] for line in logged] == [0] * 5, "the schedule waits"
    assert [line["batch"] for line in logged] == [1, 2, 3, 4, 5], "but the next batch is another one"
    assert all(torch.equal(v, before[k]) for k, v in trainer.draft.state_dict().items()), "no poisoned update was made"


def test_warm_start_copies_the_top_layers(tiny_target):
    draft = DFlashDraft(DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4))
    warm_start(draft, tiny_target, list(range(20)))
    for own, source in zip(draft.layers, tiny_target.layers[-2:], strict=True):
        assert torch.equal(own.mlp.up_proj.weight, source.mlp.up_proj.weight)
    assert torch.equal(draft.norm.weight, tiny_target.final_norm.weight)
    query = tiny_target.layers[-1].self_attn.q_proj(
        tiny_target.layers[-1].input_layernorm(tiny_target.features(torch.arange(20)[None], [4]))
    )
    assert draft.layers[-1].self_attn.q_norm.weight[0].item() == pytest.approx(query.pow(2).mean().sqrt().item(), rel=1e-4)


def test_warm_start_refuses_another_shape(tiny_target):
    draft = DFlashDraft(
        DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4, intermediate_size=48)
    )
    with pytest.raises(UserError, match="gate_proj"):
        warm_start(draft, tiny_target, [1, 2, 3])
