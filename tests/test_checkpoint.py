"""Checkpoints of one and several ranks: exact resume after kill -9, damage, full disks, rotation, other world sizes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dflash.errors import UserError
from dflash.training.checkpoint import CheckpointStore, Contents, TrainerState
from dflash.training.export import DraftExport
from dflash.training.saver import BackgroundSaver
from dflash.training.trainer import train
from tiny_runs import ALONE, metrics, open_trainer, tiny_config, torchrun, weights, write_conversations

# Trains HERE/config.json in HERE/NAME for every NAME:DIES argument, on the ranks there are. A run that exists goes on;
# behind step DIES every rank kills itself without warning (0: never).
MORTAL = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from dflash.config import TrainConfig
    from dflash.training import trainer as module
    from dflash.training.world import joined
    after_step = module.Trainer._after_step
    def dying(self):
        if self.state.step == int(dies):
            os.kill(os.getpid(), 9)
        after_step(self)
    module.Trainer._after_step = dying
    here = Path(sys.argv[1])
    config = TrainConfig.model_validate_json((here / "config.json").read_text())
    with joined(config) as world:
        for name, dies in (argument.split(":") for argument in sys.argv[2:]):
            resume = world.on_main((here / name).exists)
            module.train(config, here / name, resume=resume, progress=False)
""")


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    talk = write_conversations(tmp_path / "talk.jsonl")
    return lambda **sections: tiny_config(tiny_target_folder, talk, **sections)


def write_config(tmp_path, settings):
    (tmp_path / "config.json").write_text(settings.model_dump_json(exclude_unset=True))


def assert_same_run(one, other):
    assert metrics(one) == metrics(other)
    newest = [sorted((run / "checkpoints").glob("step_*"))[-1] for run in (one, other)]
    assert newest[0].name == newest[1].name
    for (name, a), b in zip(weights(newest[0] / "draft").items(), weights(newest[1] / "draft").values(), strict=True):
        assert torch.equal(a, b), name
    states = [sorted((path / "state").iterdir()) for path in newest]
    for a, b in zip(*states, strict=True):
        mine, theirs = load_file(a), load_file(b)
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():  # fp32 weights, optimizer and random states
            assert torch.equal(tensor, theirs[name]), (a.name, name)


def test_kill_minus_nine_at_any_step_resumes_bit_for_bit(config, tmp_path):
    settings = config(run={"max_steps": 7}, optimizer={"ema_decay": 0.9})
    write_config(tmp_path, settings)
    train(settings, tmp_path / "whole", progress=False)
    for step in (1, 4):  # before the first checkpoint; between two, and before the one that is due
        name = f"cut{step}"
        result = subprocess.run(
            [sys.executable, "-c", MORTAL, str(tmp_path), f"{name}:{step}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == -signal.SIGKILL
        (tmp_path / name / "checkpoints/.step_0000006").mkdir()  # as a save cut in the middle leaves it
        train(settings, tmp_path / name, resume=True, progress=False)
        assert_same_run(tmp_path / "whole", tmp_path / name)
        assert not (tmp_path / name / "checkpoints/.step_0000006").exists()


@pytest.mark.slow
def test_killed_ranks_resume_bit_for_bit_and_other_numbers_of_ranks_go_on_with_the_same_curve(config, tmp_path):
    settings = config(checkpoint={"every": 2, "keep": 9, "asynchronous": True}, optimizer={"ema_decay": 0.9})
    write_config(tmp_path, settings)
    train(settings, tmp_path / "one", progress=False)
    shutil.copytree(tmp_path / "one", tmp_path / "grown")
    (tmp_path / "grown/checkpoints/best.json").unlink()
    for path in (tmp_path / "grown/checkpoints").glob("step_*"):
        if path.name > "step_0000003":
            shutil.rmtree(path)

    whole = torchrun(2, MORTAL, tmp_path, "whole:0", "grown:0")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert_close(tmp_path / "one", tmp_path / "grown")
    assert "world_size is 2, it was 1" in (tmp_path / "grown/log.txt").read_text()

    assert torchrun(2, MORTAL, tmp_path, "cut:5").returncode != 0
    shutil.copytree(tmp_path / "cut", tmp_path / "shrunk")
    again = torchrun(2, MORTAL, tmp_path, "cut:0")
    assert again.returncode == 0, again.stderr[-3000:]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

    train(settings, tmp_path / "shrunk", resume=True, progress=False)
    assert_close(tmp_path / "whole", tmp_path / "shrunk")


def assert_close(one, other):
    a, b = metrics(one), metrics(other)
    assert [(x["kind"], x["step"]) for x in a] == [(x["kind"], x["step"]) for x in b]
    assert [x["loss"] for x in a] == pytest.approx([x["loss"] for x in b], rel=1e-6)


def test_the_tensors_of_a_checkpoint_are_never_unpickled(config, tmp_path, monkeypatch):
    train(config(), tmp_path / "run", progress=False)
    files = {p.suffix for p in (tmp_path / "run/checkpoints").rglob("*") if p.is_file()}
    assert files == {".safetensors", ".json"}

    def refuse(*_args, **_kwargs):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("torch.load", refuse)
    train(config(run={"max_steps": 7}), tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("state/*.safetensors", lambda b: b[:-100], "state/shard-.* bytes instead of"),
        ("state/*.safetensors", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], "state/shard-.* checksum"),
        ("draft/model.safetensors", lambda b: b[:200], "draft/model.safetensors has 200 bytes instead of"),
        ("trainer.json", lambda b: b.replace(b'"step": 6', b'"step": 5'), "trainer.json does not match its checksum"),
        ("manifest.json", lambda b: b[:50], "manifest.json"),
        ("manifest.json", lambda b: b'{"a": 1}', "manifest.json is not of the form"),
        ("state/*.safetensors", None, "is missing"),
        ("manifest.json", None, "manifest.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_file(damageable, file, harm, said):
    settings, run = damageable
    path = next((run / "checkpoints/step_0000006").glob(file))
    whole = path.read_bytes()
    path.unlink() if harm is None else path.write_bytes(harm(whole))
    try:
        with pytest.raises(UserError, match=rf"step_0000006' is damaged \(.*{said}.*remove that folder to resume"):
            train(settings, run, resume=True, progress=False)
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def damageable(tiny_target_folder, tmp_path_factory):
    """A finished run whose files the tests may harm, if they mend them again."""
    path = tmp_path_factory.mktemp("damage")
    settings = tiny_config(tiny_target_folder, write_conversations(path / "talk.jsonl"))
    train(settings, path / "run", progress=False)
    return settings, path / "run"


def test_behind_a_damaged_checkpoint_the_one_before_it_is_used_only_when_the_user_removes_it(config, tmp_path):
    settings = config()
    train(settings, tmp_path / "run", progress=False)
    before = metrics(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_0000006")
    (tmp_path / "run/checkpoints/best.json").unlink()
    train(settings, tmp_path / "run", resume=True, progress=False)
    assert metrics(tmp_path / "run") == before


def test_a_checkpoint_of_another_draft_or_optimizer_is_not_called_damaged(config, tmp_path):
    train(config(), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="saved with optimizer 'adamw', the config says 'muon'"):
        train(config(optimizer={"name": "muon"}, run={"max_steps": 8}), tmp_path / "run", resume=True, progress=False)
    with pytest.raises(UserError, match=r"draft.num_hidden_layers = 1 contradicts .*step_0000006/draft', which has 2"):
        shallow = config(draft={"num_hidden_layers": 1}, run={"max_steps": 8})
        train(shallow, tmp_path / "run", resume=True, progress=False)


def test_an_average_that_was_switched_on_later_starts_at_the_weights(config, tmp_path):
    train(config(), tmp_path / "run", progress=False)
    later = config(optimizer={"ema_decay": 0.5}, run={"max_steps": 8})
    train(later, tmp_path / "run", resume=True, progress=False)
    assert "holds no average of the weights" in (tmp_path / "run/log.txt").read_text()


# ---- full disks


def test_a_full_disk_leaves_the_older_checkpoint_and_a_sentence(config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here; the limit on file sizes below stands in for it")
    try:
        settings = config(checkpoint={"every": 2, "keep": 5}, metrics={"validate_every": 100})
        with pytest.raises(UserError, match=r"step_0000004 could not be written .*No space left.*are intact"):
            train(settings, disk / "run", progress=False)
        assert json.loads((disk / "run/status.json").read_text())["state"] in ("failed", "running")
        assert [p.name for p in (disk / "run/checkpoints").iterdir()] == ["step_0000002"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_file_that_cannot_grow_ends_the_run_with_the_older_checkpoint_and_a_sentence(config, tmp_path, asynchronous):
    settings = config(checkpoint={"every": 2, "keep": 5, "asynchronous": asynchronous}, metrics={"validate_every": 100})
    with open_trainer(settings, tmp_path / "run") as trainer:
        after_step = trainer._after_step

        def shrink_the_disk():
            if trainer.state.step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
            after_step()

        trainer._after_step = shrink_the_disk
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            with pytest.raises(UserError, match=r"step_0000004 could not be written .*File too large.*are intact"):
                trainer.fit()
        finally:
            signal.signal(signal.SIGXFSZ, before[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_0000002"]


# ---- rotation and asynchronous saving


@pytest.fixture
def save(config, tmp_path):
    with open_trainer(config(), tmp_path / "run") as trainer:
        store = CheckpointStore(trainer.run.checkpoints, 2, ALONE)

        def save(step, is_best=False):
            export = DraftExport.of(trainer.draft, None, ALONE)
            state = replace(TrainerState(optimizer="adamw"), step=step, best_loss=0.5)
            return store.save(Contents(state, trainer.tensors.tensors(), export, is_best))

        save.store = store
        yield save


def test_rotation_keeps_the_newest_and_the_best(save):
    save(1, is_best=True)
    for step in range(2, 6):
        save(step)
    assert [p.name for p in save.store.all()] == ["step_0000001", "step_0000004", "step_0000005"]
    assert save.store.best().name == "step_0000001"
    save(6, is_best=True)
    save(7)
    assert [p.name for p in save.store.all()] == ["step_0000006", "step_0000007"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(save, monkeypatch, caplog):
    save(1)
    save(2)

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("dflash.training.checkpoint.shutil.rmtree", lambda p, **o: None if o else refuse(p))
        save(3)
    assert any("step_0000001 could not be removed" in record.message for record in caplog.records)
    assert [p.name for p in save.store.all()] == ["step_0000002", "step_0000003"]
    assert [p.name for p in reopened(save.store)._folder.glob(".step_*")] == [], "it goes when the run is opened again"


def reopened(store):
    return CheckpointStore(store._folder, 2, ALONE)


def test_the_best_is_known_when_the_process_dies_before_best_json_is_written(save, monkeypatch):
    save(1, is_best=True)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dflash.training.checkpoint.write_atomically", die)
        with pytest.raises(KeyboardInterrupt):
            save(2, is_best=True)
    marker = save.store._folder / "best.json"
    assert json.loads(marker.read_text())["name"] == "step_0000001", "it died between the two"
    assert save.store.best().name == "step_0000002"
    save.store = reopened(save.store)
    assert json.loads(marker.read_text()) == {"name": "step_0000002", "loss": 0.5}
    for step in range(3, 6):
        save(step)
    assert (save.store._folder / "step_0000002").is_dir(), "rotation keeps it"


@pytest.mark.parametrize("text", ['{"name": "step_0000009", "loss": 0.1}', '{"na', "[]"])
def test_a_stale_or_torn_best_json_is_repaired(save, text):
    save(1, is_best=True)
    save(2)
    marker = save.store._folder / "best.json"
    marker.write_text(text)
    assert reopened(save.store).best().name == "step_0000001"
    assert json.loads(marker.read_text())["name"] == "step_0000001"


def test_checkpoints_that_do_not_say_what_they_are_leave_it_to_best_json(save):
    save(1, is_best=True)
    save(2)
    for path in save.store.all():
        record = json.loads((path / "trainer.json").read_text())
        del record["is_best"]
        (path / "trainer.json").write_text(json.dumps(record))
    assert reopened(save.store).best().name == "step_0000001"


def test_a_torn_folder_is_no_checkpoint_it_is_written_again_and_swept_when_the_run_is_opened(save):
    save(1)
    torn = save.store._folder / "step_0000002"
    shutil.copytree(save.store._folder / "step_0000001", torn)
    (torn / "trainer.json").unlink()
    assert save.store.latest().name == "step_0000001"
    assert save(2) == torn and save.store.read_state(torn).step == 2
    (torn / "trainer.json").unlink()
    assert [p.name for p in reopened(save.store)._folder.glob("*step_*")] == ["step_0000001"]


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_complete(save, monkeypatch):
    save(1)
    save(2)
    rmtree = shutil.rmtree

    def cut_short(path, **options):
        if path.name.endswith("1"):
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dflash.training.checkpoint.shutil.rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            save(3)
    assert [p.name for p in save.store.all()] == ["step_0000002", "step_0000003"]


def test_a_checkpoint_written_while_training_goes_on_holds_the_weights_of_its_own_step(config, tmp_path):
    settings = config(checkpoint={"every": 2, "asynchronous": True, "keep": 9})
    train(config(checkpoint={"every": 2, "keep": 9}), tmp_path / "plain", progress=False)
    release = threading.Event()
    with open_trainer(settings, tmp_path / "run") as trainer:
        write, after_step = trainer._write, trainer._after_step
        trainer._write = lambda contents: (release.wait(60), write(contents))

        def training_goes_on():
            if trainer.state.step == 3:  # a step has changed the weights, and the save of step 2 has not begun
                assert trainer.store.all() == []
                release.set()
            after_step()

        trainer._after_step = training_goes_on
        assert trainer.fit() is True
    saved = sorted((tmp_path / "run/checkpoints").glob("step_*"))
    assert [p.name for p in saved] == [f"step_000000{n}" for n in (2, 3, 4, 6)]
    for path in saved:
        runs = path.parent, tmp_path / "plain/checkpoints"
        (mine,), (other,) = ((run / path.name / "state").glob("*") for run in runs)
        mine, other = load_file(mine), load_file(other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items()), path.name


def test_a_second_save_waits_for_the_first_and_learns_of_its_error():
    saver, order, release = BackgroundSaver(), [], threading.Event()

    def fail():
        release.wait(10)
        order.append("first")
        raise UserError("the disk is full")

    saver.submit(fail)
    threading.Timer(0.2, release.set).start()
    with pytest.raises(UserError, match="the disk is full"):
        saver.submit(lambda: order.append("second"))
    assert order == ["first"]
    saver.submit(lambda: order.append("third"))
    saver.wait()
    assert order == ["first", "third"] and not saver.failed
