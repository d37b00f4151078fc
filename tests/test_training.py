"""Training: schedule, exact resume, interruption, warm start, and that a draft really learns."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from dflash.config import DraftConfig, ScheduleConfig, dump_config, load_config
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.training.order import total_steps
from dflash.training.run_folder import RunFolder
from dflash.training.schedule import learning_rate
from dflash.training.trainer import train
from dflash.training.warm_start import warm_start
from tiny_runs import ask_to_stop_behind, metrics, open_trainer, tiny_config, weights, write_conversations


@pytest.fixture
def conversations(tmp_path):
    return write_conversations(tmp_path / "talk.jsonl")


@pytest.fixture
def config(tiny_target_folder, conversations):
    return lambda **sections: tiny_config(tiny_target_folder, conversations, **sections)


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


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "adamw"}},
        {"optimizer": {"name": "muon", "ema_decay": 0.9}},
        {"checkpoint": {"every": 2, "asynchronous": True}, "features": {"prefetch": 2}},
        {"run": {"batch_size": 4, "micro_batch_size": 2}, "data": {"packing": True}, "objective": {"candidates": 32}},
    ],
    ids=["adamw", "muon, average", "asynchronous, prefetch", "packed micro-batches, candidates"],
)
def test_a_run_that_was_asked_to_stop_goes_on_bit_for_bit(config, tmp_path, settings):
    settings = config(**settings)
    whole = train(settings, tmp_path / "whole", progress=False)
    with open_trainer(settings, tmp_path / "cut") as trainer:
        ask_to_stop_behind(trainer, 3)
        assert trainer.fit() is False
        assert trainer.store.latest().name == "step_0000004", "the step under way is finished first"
    cut = train(settings, tmp_path / "cut", resume=True, progress=False)

    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    for (name, a), b in zip(weights(whole).items(), weights(cut).values(), strict=True):
        assert torch.equal(a, b), name


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
        train(config(optimizer={"name": "muon"}, run={"max_steps": 8}), tmp_path / "run", resume=True, progress=False)


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
    before = {p: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    other = config(run={"max_steps": 9})
    for resume in (True, False):
        with run.locked(), pytest.raises(UserError, match="another process"):
            train(other, tmp_path / "run", resume=resume, progress=False)
    (run.path / ".lock").unlink()
    assert {p: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before, "its files are as they were"


def test_the_command_of_a_run_can_be_pasted_into_a_shell(config, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(config()))
    source = (
        "import os, sys\n"
        "from dflash.config import load_config\n"
        "from dflash.training.run_folder import RunFolder\n"
        "RunFolder.create(os.environ['RUN'], load_config(sys.argv[1]))"
    )
    words = [sys.executable, "-c", source, str(tmp_path / "config.yaml"), "two words", "it's $HOME"]
    subprocess.run(words, env={**os.environ, "RUN": str(tmp_path / "first")}, check=True)
    command = (tmp_path / "first" / "command.txt").read_text()
    subprocess.run(["sh", "-c", command], env={**os.environ, "RUN": str(tmp_path / "second")}, check=True)
    assert (tmp_path / "second" / "command.txt").read_text() == command


def test_resuming_a_finished_run_loads_nothing_and_says_how_to_go_on(config, tmp_path, monkeypatch):
    draft = train(config(), tmp_path / "run", progress=False)
    before = metrics(tmp_path / "run")

    def refuse(*_args, **_options):
        raise AssertionError("the target was loaded")

    monkeypatch.setattr("dflash.training.trainer.TargetModel.load", refuse)
    assert train(config(), tmp_path / "run", resume=True, progress=False) == draft
    assert "Already finished at step 6: give a larger run.max_steps" in (tmp_path / "run/log.txt").read_text()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 6) and metrics(tmp_path / "run") == before


def test_resuming_what_is_no_run_creates_nothing(config, tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        train(config(), tmp_path / "run", resume=True, progress=False)
    assert not (tmp_path / "run").exists()


def test_data_that_grows_never_changes_the_held_out_conversations(config, conversations, tmp_path):
    settings = config()
    train(settings, tmp_path / "run", progress=False)
    before = json.loads((tmp_path / "run/validation_ids.json").read_text())
    with open(conversations, "a") as file:
        for i in range(30):
            messages = [{"role": "user", "content": "more"}, {"role": "assistant", "content": "yes of course"}]
            file.write(json.dumps({"id": f"new{i}", "messages": messages}) + "\n")
    with open_trainer(settings, tmp_path / "run") as trainer:
        data = trainer.data
    assert sorted(item.id for item in data.held_out) == sorted(before)
    assert sorted(name for row in data.validation for name in row.ids) == sorted(before)
    assert not set(before) & {name for row in data.training for name in row.ids} and len(data.training) == 40


def test_a_new_run_does_not_take_over_what_a_failed_one_held_out(config, tmp_path):
    (tmp_path / "other").mkdir()
    other = write_conversations(tmp_path / "other/talk.jsonl", 30)
    settings = config(run={"max_steps": 1}, metrics={"decode_every": 1, "decode_prompts": str(tmp_path / "none")})
    with pytest.raises(UserError, match="none"):
        train(settings, tmp_path / "run", progress=False)
    assert (tmp_path / "run/validation_ids.json").is_file()
    again = config(run={"max_steps": 1}, data={"train": [other], "validation_size": 25})
    train(again, tmp_path / "run", progress=False)
    assert len(json.loads((tmp_path / "run/validation_ids.json").read_text())) == 25


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"validation_size": 3}, "validation_size = 3, but run .* holds out 2 .*set data.validation_size=2"),
        ({"train": ["OTHER"]}, r"holds out 2 conversations \(validation_ids.json\), of which .* has 0: resume with"),
        ({"train": ["HELD"], "validation_size": 2}, "Only 2 usable conversations that differ"),
    ],
)
def test_data_that_does_not_fit_what_the_run_holds_out_is_refused(config, conversations, tmp_path, data, said):
    train(config(run={"max_steps": 1}), tmp_path / "run", progress=False)
    held = json.loads((tmp_path / "run/validation_ids.json").read_text())
    lines = [json.loads(line) for line in open(conversations)]
    mine = [line for line in lines if line["id"] in held]
    files = {
        "OTHER": [{**line, "id": f"other {line['id']}"} for line in lines],
        "HELD": mine,
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    data = {k: [str(tmp_path / f"{v[0]}.jsonl")] if k == "train" else v for k, v in data.items()}
    with pytest.raises(UserError, match=said):
        train(config(data=data, run={"max_steps": 2}), tmp_path / "run", resume=True, progress=False)


def test_a_text_that_is_held_out_is_not_trained_on_under_another_id(config, conversations, tmp_path):
    lines = open(conversations).read().splitlines()
    with open(conversations, "a") as file:
        for line in lines:
            file.write(json.dumps({**json.loads(line), "id": f"twin {json.loads(line)['id']}"}) + "\n")
    with open_trainer(config(), tmp_path / "run") as trainer:
        data = trainer.data
    held = {tuple(row.input_ids) for row in data.validation}
    assert len(data.validation) == len(held) == 2
    assert not held & {tuple(row.input_ids) for row in data.training} and len(data.training) == 20
    assert "2 conversations are not trained on" in (tmp_path / "run/log.txt").read_text()


def test_other_data_with_as_many_rows_is_noticed_on_resume(config, conversations, tmp_path):
    train(config(), tmp_path / "run", progress=False)
    held = json.loads((tmp_path / "run/validation_ids.json").read_text())
    lines = [json.loads(line) for line in open(conversations)]
    changed = next(line for line in lines if line["id"] not in held)
    changed["messages"][1]["content"] += " and more"
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = tmp_path / "run/log.txt"
    assert "but others" not in log.read_text()
    train(config(run={"max_steps": 7}), tmp_path / "run", resume=True, progress=False)
    assert "the training rows are as many as before, but others" in log.read_text()


def test_a_continued_draft_is_trained_and_recorded_with_its_own_block_size(config, tmp_path):
    first = train(config(run={"max_steps": 1}), tmp_path / "first", progress=False)
    settings = config(run={"max_steps": 1})
    settings.draft = DraftConfig(init=str(first))
    assert settings.draft.block_size == 16
    plans = []
    with open_trainer(settings, tmp_path / "second") as trainer:
        plan = trainer.step._plan
        trainer.step._plan = lambda *arguments: plans.append(plan(*arguments)) or plans[-1]
        trainer.fit()
    recorded = load_config(tmp_path / "second/config.yaml")
    assert (recorded.draft.block_size, recorded.draft.num_hidden_layers, recorded.draft.num_features) == (4, 2, 3)
    kept = plans[0].weights[plans[0].weights > 0]
    own, default = config().gamma, settings.gamma
    assert own != default
    assert kept.min().item() == pytest.approx(torch.tensor(-2 / own).exp().item()), "the last slot of four"


def test_a_shape_given_on_resume_counts_even_where_it_is_the_default(config, tmp_path):
    train(config(run={"max_steps": 1}), tmp_path / "run", progress=False)
    for override, has in (("draft.block_size=16", 4), ("draft.num_hidden_layers=5", 2)):
        again = load_config(tmp_path / "run/config.yaml", [override, "run.max_steps=2"])
        name, value = override.split("=")
        with pytest.raises(UserError, match=f"{name} = {value} contradicts .* which has {has}: set {name}={has}"):
            train(again, tmp_path / "run", resume=True, progress=False)
        train(config(run={"max_steps": 1}), tmp_path / "run", resume=True, progress=False)


def test_candidates_depend_neither_on_anchors_nor_on_who_shares_the_micro_batch(config, tmp_path):
    drawn = {}
    for name, blocks, size in (("few", 4, 2), ("many", 8, 2), ("alone", 8, 1)):
        settings = config(
            blocks={"num_anchors": blocks},
            objective={"candidates": 32},
            run={"max_steps": 1, "micro_batch_size": size},
        )
        with open_trainer(settings, tmp_path / name) as trainer:
            sampler, found = trainer.step._candidates, drawn.setdefault(name, [])
            draw = sampler.draw
            sampler.draw = lambda generator: found.append(draw(generator)) or found[-1]
            trainer.fit()
    assert torch.equal(drawn["few"][0].ids, drawn["many"][0].ids)
    first, second = drawn["alone"]
    assert torch.equal(drawn["many"][0].ids, first.ids) and not torch.equal(first.ids, second.ids)


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
    settings = config(run={"max_steps": 60}, metrics={"validate_every": 60}, optimizer={"lr": 3e-3})
    train(settings, tmp_path / "run", progress=False)
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["tau_estimate"] > lines[0]["tau_estimate"] + 0.5


def test_the_size_of_micro_batches_changes_nothing_but_rounding(config, tmp_path):
    for size in (1, 4):
        settings = config(run={"batch_size": 4, "micro_batch_size": size, "max_steps": 4})
        train(settings, tmp_path / f"by{size}", progress=False)
    one, four = (metrics(tmp_path / f"by{size}", "train") for size in (1, 4))
    assert [line["slot_count"] for line in one] == [line["slot_count"] for line in four], "the same anchors"
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in four], rel=1e-6)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 5), (2.5, 13), (0.01, 1)])
def test_epochs_become_steps(config, tmp_path, epochs, steps):
    settings = config(run={"max_steps": None, "epochs": epochs})
    assert total_steps(settings, 10) == steps
    with open_trainer(settings, tmp_path / "run") as trainer:
        assert trainer.max_steps == steps, "ten conversations in steps of two"


def test_the_drafts_vocabulary_is_in_every_checkpoint_and_survives_a_resumed_run(config, tmp_path):
    first = train(config(draft={"vocabulary_size": 40}), tmp_path / "run", progress=False)
    second = train(config(run={"max_steps": 7}), tmp_path / "run", resume=True, progress=False)
    a, b = (DFlashDraft.from_pretrained(folder).vocabulary for folder in (first, second))
    assert len(a) == 40 and torch.equal(a, b)
    with pytest.raises(UserError, match="vocabulary_size = 50 contradicts"):
        settings = config(draft={"vocabulary_size": 50}, run={"max_steps": 8})
        train(settings, tmp_path / "run", resume=True, progress=False)


def test_non_finite_steps_are_logged_with_their_conversations_and_stop_the_run(config, tmp_path):
    with open_trainer(config(run={"max_steps": 20}), tmp_path / "run") as trainer:
        broken(trainer, batches=range(1, 21))
        before = {k: v.clone() for k, v in trainer.draft.state_dict().items()}
        with pytest.raises(UserError, match="non-finite"):
            trainer.fit()
        assert all(torch.equal(v, before[k]) for k, v in trainer.draft.state_dict().items()), "no poisoned update"
    logged = metrics(tmp_path / "run", "train")
    assert len(logged) == 5 and all(len(line["conversations"]) == 2 for line in logged)
    assert [line["step"] for line in logged] == [0] * 5, "the schedule waits"
    assert [line["batch"] for line in logged] == [1, 2, 3, 4, 5], "but the next batch is another one"


def test_a_skipped_step_leaves_schedule_and_weights_as_they_were_and_the_run_goes_on(config, tmp_path):
    with open_trainer(config(), tmp_path / "run") as trainer:
        broken(trainer, batches=[3, 4])
        assert trainer.fit() is True
    logged = metrics(tmp_path / "run", "train")
    assert [line["skipped"] for line in logged] == [False, False, True, True, False, False, False, False]
    assert [line["step"] for line in logged] == [1, 2, 2, 2, 3, 4, 5, 6]
    rates = [line["lr"] for line in logged]
    assert rates[2] == rates[3] == rates[4], "the step that was skipped is made up with its own learning rate"


def broken(trainer, batches):
    """Features of the given batches (1-based) are not finite."""
    step = trainer.step

    def poisoned(micro, *generators):
        if trainer.draft.training and torch.is_grad_enabled() and trainer.state.batches + 1 in batches:
            micro.features.fill_(float("nan"))
        return step(micro, *generators)

    trainer.step = poisoned


def test_warm_start_copies_the_top_layers(tiny_target):
    draft = DFlashDraft(DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4))
    warm_start(draft, tiny_target, list(range(20)))
    for own, source in zip(draft.layers, tiny_target.layers[-2:], strict=True):
        assert torch.equal(own.mlp.up_proj.weight, source.mlp.up_proj.weight)
    assert torch.equal(draft.norm.weight, tiny_target.final_norm.weight)
    query = tiny_target.layers[-1].self_attn.q_proj(
        tiny_target.layers[-1].input_layernorm(tiny_target.features(torch.arange(20)[None], [4]))
    )
    size = query.pow(2).mean().sqrt().item()
    assert draft.layers[-1].self_attn.q_norm.weight[0].item() == pytest.approx(size, rel=1e-4)


def test_warm_start_refuses_another_shape(tiny_target):
    draft = DFlashDraft(
        DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4, intermediate_size=48)
    )
    with pytest.raises(UserError, match="gate_proj"):
        warm_start(draft, tiny_target, [1, 2, 3])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"blocks": {"attention": "flex"}}, "blocks.attention = 'flex' has no backward pass on a CPU"),
        ({"parallel": {"cpu_offload": True}}, "parallel.cpu_offload = true does nothing on a CPU"),
    ],
)
def test_auto_that_finds_a_cpu_refuses_what_a_cpu_cannot_do_before_loading(
    config, tmp_path, monkeypatch, setting, said
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = config(run={"device": "auto"}, **setting)
    with pytest.raises(UserError, match=said):
        train(settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
