"""Wrong configs: before anything is loaded, exit code 2 and one sentence naming field, value and remedy."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dflash.cli.main import main


@pytest.fixture(autouse=True)
def plenty_of_disk(monkeypatch):
    """Checkpoints of an 8B target's draft take 55 GiB, which the machine under test may not have free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """In reach; nothing here asks it for anything."""
    monkeypatch.setattr("dflash.training.readiness.hub_is_reachable", lambda: True)


def test_checkpoints_that_do_not_fit_are_refused_with_both_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 << 30))
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"messages": []}\n' * 9)
    path = tmp_path / "config.yaml"
    tree = {"target": {"name": "Qwen/Qwen3-8B"}, "data": {"train": [str(talk)], "validation_size": 2}}
    path.write_text(yaml.safe_dump(tree))
    assert main(["train", str(path), "--runs", str(tmp_path / "runs")]) == 2
    assert re.search(r"checkpoint.keep = 2 takes up to \d+\.\d GiB .* has 2\.0 GiB free", capsys.readouterr().err)

ROOT = Path(__file__).resolve().parent.parent

# Overrides of the base config below; the field and the value that the sentence has to name; what it has to advise.
WRONG_ANYWHERE = [
    # single settings
    (["run.max_steps=0"], "run.max_steps = 0", "give a number of at least 1"),
    (["run.seed=1.5"], "run.seed = 1.5", "give a whole number"),
    (["run.autocast=perhaps"], "run.autocast = 'perhaps'", "give true or false"),
    (["run.epochs=.inf", "run.max_steps=null"], "run.epochs = inf", "give a finite number"),
    (["run.max_stepz=5"], "run.max_stepz = 5", "write run.max_steps"),
    (["schedule.min_lr=1e-5"], "schedule.min_lr = 1e-05", "write optimizer.min_lr"),
    (["training.lr=1"], "training = {'lr': 1}", "choose one of target, draft, data"),
    (["optimizer.name=sgd"], "optimizer.name = 'sgd'", "take 'adamw' or 'muon'"),
    (["optimizer.lr=fast"], "optimizer.lr = 'fast'", "give a number"),
    (["optimizer.ema_decay=1"], "optimizer.ema_decay = 1", "give a number below 1"),
    (["schedule.decay_style=step"], "schedule.decay_style = 'step'", "take 'linear', 'cosine' or 'sqrt'"),
    (["draft.block_size=1"], "draft.block_size = 1", "give a number of at least 2"),
    (["data.train=talk.jsonl"], "data.train = 'talk.jsonl'", "give a list"),
    (["data.train=[]"], "data.train = []", "give at least one entry"),
    (["target.dtype=int8"], "target.dtype = 'int8'", "take 'bfloat16', 'float32' or 'float16'"),
    (["data.min_supervised=1"], "data.min_supervised = 1", "give a number of at least 2"),
    (["run.device=abacus"], "run.device = 'abacus'", "choose auto, cpu, cuda"),
    (["draft.type=dspark"], "draft.type = 'dspark'", "choose 'dflash'"),
    # settings against each other
    (["run.epochs=2"], "run.max_steps = 40 and run.epochs = 2", "set one of them to null"),
    (["run.batch_size=6", "run.micro_batch_size=4"], "run.batch_size = 6", "set run.batch_size to 4"),
    (["optimizer.lr=1e-6"], "optimizer.min_lr = 6e-05", "lower min_lr"),
    (["schedule.warmup_ratio=0.9"], "schedule.warmup_ratio = 0.9", "shorten one of them"),
    (["schedule.decay_ratio=0"], "schedule.decay_ratio = 0", "choose schedule.kind=constant"),
    (["draft.target_layer_ids=[1,2]", "draft.num_features=3"], "draft.num_features = 3", "drop one"),
    (["draft.target_layer_ids=[9,1]"], "draft.target_layer_ids = [9, 1]", "write [1, 9]"),
    (["draft.target_layer_ids=[1,1]"], "draft.target_layer_ids = [1, 1]", "write [1]"),
    (["draft.block_size=100"], "draft.block_size = 100", "shorten the block"),
    (["data.min_supervised=64"], "data.min_supervised = 64", "lower it"),
    (["blocks.num_anchors=65"], "blocks.num_anchors = 65", "set blocks.num_anchors=64"),
    (["blocks.attention=flex"], "blocks.attention = 'flex'", "set blocks.attention=split"),
    (["data.train=[a.jsonl,a.jsonl]"], "data.train = ['a.jsonl', 'a.jsonl']", "remove the repetition"),
    (["data.train=[some/talks]", "data.streaming=true"], "data.streaming = True", "set data.limit"),
    (["data.limit=2"], "data.limit = 2", "lower the other"),
    (["target.dtype=float16"], "target.dtype = 'float16'", "set target.dtype=bfloat16"),
    (["parallel.reduce_dtype=bfloat16", "run.autocast=false", "--world-size=2"],
     "parallel.reduce_dtype = 'bfloat16'", "set parallel.reduce_dtype=float32"),
    (["features.source=cache"], "features.source = 'cache'", "name the folder"),
    (["metrics.decode_every=5", "metrics.decode_count=9"], "metrics.decode_count = 9", "name a prompt file"),
    # settings without effect
    (["features.cache=here"], "features.cache = 'here'", "set features.source=cache"),
    (["schedule.kind=cosine", "schedule.decay_ratio=0.2"], "schedule.decay_ratio = 0.2", "set schedule.kind=wsd"),
    (["schedule.kind=linear", "schedule.decay_style=sqrt"], "schedule.decay_style = 'sqrt'", "set schedule.kind=wsd"),
    (["schedule.kind=constant", "optimizer.min_lr=1e-5"], "optimizer.min_lr = 1e-05", "choose another schedule.kind"),
    (["data.packing=true", "data.length_grouping=true"], "data.length_grouping = True", "set data.packing=false"),
    (["data.subset=main"], "data.subset = 'main'", "name a data set"),
    (["data.split=test"], "data.split = 'test'", "name a data set"),
    (["data.streaming=true"], "data.streaming = True", "name a data set"),
    (["metrics.decode_tokens=9"], "metrics.decode_tokens = 9", "set metrics.decode_every"),
    (["metrics.project=mine"], "metrics.project = 'mine'", "add one of them"),
    (["target.name=smollm2-135m", "target.revision=main"], "target.revision = 'main'", "name a hub target"),
    (["parallel.shard_size=2"], "parallel.shard_size = 2", "set parallel.strategy=hybrid"),
    (["parallel.strategy=replicate"], "parallel.strategy = 'replicate'", "start several with torchrun"),
    (["parallel.cpu_offload=true"], "parallel.cpu_offload = True", "remove it"),
    # ranks
    (["--world-size=3"], "run.batch_size = 8", "set run.batch_size to 6"),
    (["parallel.strategy=hybrid", "--world-size=8"], "parallel.strategy = 'hybrid'", "set it"),
    (["parallel.strategy=hybrid", "parallel.shard_size=3", "--world-size=8"],
     "parallel.shard_size = 3", "choose a divisor"),
    (["run.device=cuda:1", "--world-size=2"], "run.device = 'cuda:1'", "set run.device=cuda."),
    # the target
    (["draft.target_layer_ids=[1,36]"], "draft.target_layer_ids = [1, 36]", "choose among those"),
    (["draft.target_layer_ids=[1,35]", "features.source=online"],
     "draft.target_layer_ids = [1, 35]", "choose lower layers"),
    (["draft.num_features=34"], "draft.num_features = 34", "ask for 33 or fewer"),
    (["draft.mask_token_id=151936"], "draft.mask_token_id = 151936", "choose a row"),
    (["draft.mask_token_id=151645"], "draft.mask_token_id = 151645", "choose a row"),
    (["draft.init=warm", "draft.intermediate_size=64"], "draft.intermediate_size = 64", "set draft.init=random"),
    (["draft.init=warm", "draft.num_hidden_layers=37"], "draft.num_hidden_layers = 37", "lower it"),
    (["draft.vocabulary_size=200000"], "draft.vocabulary_size = 200000", "lower it"),
    (["objective.candidates=200000"], "objective.candidates = 200000", "lower it"),
    (["data.max_length=50000"], "data.max_length = 50000", "set data.max_length=40960"),
    (["target.name=./nowhere"], "target.name = './nowhere'", "give 'smollm2-135m'"),
    # what the run begins with
    (["draft.init=wram"], "draft.init = 'wram'", "write draft.init=warm"),
    (["draft.init=Random"], "draft.init = 'Random'", "write draft.init=random"),
    (["draft.init=gone/draft"], "draft.init = 'gone/draft'", "choose one of those"),
    (["data.validation_size=6"], "data.validation_size = 6", "lower it or add data"),
    # the command line
    (["run.seed="], "'run.seed='", "write run.seed=null"),
    (["nonsense=1"], "'nonsense=1'", "write it like run.seed=1"),
]  # fmt: skip

# What another machine might have: refused when the run is started, listed by a dry run.
WRONG_HERE = [
    (["data.train=[gone.jsonl]"], "data.train = ['gone.jsonl']", "make JSONL files with `dflash synthesize`"),
    (["features.source=cache", "features.cache=gone"], "features.cache = 'gone'", "write it with `dflash capture`"),
    (["metrics.decode_every=5", "metrics.decode_prompts=gone.jsonl"],
     "metrics.decode_prompts = 'gone.jsonl'", "remove it"),
    (["checkpoint.keep=100000000"], "checkpoint.keep = 100000000", "lower checkpoint.keep"),
]  # fmt: skip


@pytest.fixture
def config_file(tmp_path, monkeypatch) -> Path:
    """A right config for Qwen3-8B, of which only the published facts are known here."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two three four"}]
    Path("talk.jsonl").write_text("".join(json.dumps({"id": f"c{i}", "messages": messages}) + "\n" for i in range(6)))
    tree = {
        "target": {"name": "Qwen/Qwen3-8B"},
        "draft": {"num_hidden_layers": 1, "block_size": 4},
        "data": {"train": ["talk.jsonl"], "validation_size": 2, "max_length": 64},
        "run": {"max_steps": 40},
    }
    path = Path("base.yaml")
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def nothing_is_started(monkeypatch):
    def started(*_args, **_options):
        raise AssertionError("the run was started")

    monkeypatch.setattr("dflash.cli.train._train", started)
    monkeypatch.setattr("dflash.cli.train.check_device", started)


def is_one_sentence(text: str) -> bool:
    return text.endswith(".\n") and text.count("\n") == 1 and not re.search(r"\. [A-Z]", text)


def test_the_base_config_is_right(config_file, capsys):
    assert main(["train", str(config_file), "--dry-run"]) == 0
    assert "Not ready" not in capsys.readouterr().out


@pytest.mark.parametrize(("overrides", "named", "advice"), WRONG_ANYWHERE, ids=lambda v: v[0] if v else None)
def test_a_wrong_config_is_one_sentence(config_file, capsys, nothing_is_started, overrides, named, advice):
    assert main(["train", str(config_file), *overrides, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert is_one_sentence(said.err), said.err
    assert named in said.err and advice in said.err
    assert said.out == ""


@pytest.mark.parametrize(("overrides", "named", "advice"), WRONG_HERE, ids=lambda v: v[0] if v else None)
def test_what_this_machine_lacks_is_one_sentence(config_file, capsys, nothing_is_started, overrides, named, advice):
    assert main(["train", str(config_file), *overrides]) == 2
    said = capsys.readouterr()
    assert is_one_sentence(said.err), said.err
    assert named in said.err and advice in said.err
    assert not Path("runs").exists()

    assert main(["train", str(config_file), *overrides, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Not ready on this machine: " in out and named in out


@pytest.mark.parametrize(("override", "named"), [("target.name=some/target", "target.name = 'some/target'"),
                                                 ("data.train=[some/talks]", "data.train names 'some/talks'")])  # fmt: skip
def test_a_hub_out_of_reach_is_said_before_the_start(
    config_file, capsys, nothing_is_started, monkeypatch, override, named
):
    assert main(["train", str(config_file), override, "--dry-run"]) == 0
    assert "Not ready" not in capsys.readouterr().out
    monkeypatch.setattr("dflash.training.readiness.hub_is_reachable", lambda: False)
    assert main(["train", str(config_file), override, "--dry-run"]) == 0
    (lack,) = re.findall(rf"# Not ready on this machine: {named}.*", capsys.readouterr().out)
    assert "the Hugging Face hub cannot be reached" in lack
    assert main(["train", str(config_file), override]) == 2
    assert named in capsys.readouterr().err


def test_every_complaint_comes_at_once(config_file, capsys, nothing_is_started):
    overrides = ["run.max_steps=0", "features.cache=x", "draft.target_layer_ids=[50]", "data.train=[gone.jsonl]"]
    assert main(["train", str(config_file), *overrides, "run.batch_size=7", "run.micro_batch_size=2"]) == 2
    error = capsys.readouterr().err
    assert "has 5 faults:" in error
    for name in ("run.max_steps", "features.cache", "draft.target_layer_ids", "data.train", "run.batch_size"):
        assert f"\n  {name} = " in error


def test_one_fault_is_not_named_twice(config_file, capsys, nothing_is_started):
    """That nothing is left to train on could also be counted in the file."""
    assert main(["train", str(config_file), "data.limit=2"]) == 2
    assert is_one_sentence(capsys.readouterr().err)


def test_what_hangs_on_a_faulty_setting_is_not_judged_by_its_default(config_file, capsys):
    """min_lr is above the default lr, but what lr will be is not known yet."""
    assert main(["train", str(config_file), "optimizer.lr=-1", "optimizer.min_lr=0.5", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "optimizer.lr = -1" in error and "min_lr" not in error


@pytest.mark.parametrize("text", ["run: {seed: 1}\nrun: {seed: 2}\n", "a: [", "- a list\n", "data:\n", ""])
def test_a_file_that_is_no_config_is_one_sentence(config_file, capsys, text):
    config_file.write_text(text)
    assert main(["train", str(config_file), "--dry-run"]) == 2
    assert is_one_sentence(capsys.readouterr().err)


def test_a_config_that_is_not_there_is_one_sentence(config_file, capsys):
    assert main(["train", "gone.yaml", "--dry-run"]) == 2
    assert is_one_sentence(capsys.readouterr().err)


def test_a_draft_folder_of_another_target_or_shape_is_refused(config_file, capsys, nothing_is_started):
    draft = {
        "architectures": ["DFlashDraftModel"], "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 3,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "block_size": 8,
        "num_target_layers": 30, "dflash_config": {"mask_token_id": 17, "target_layer_ids": [1, 7, 14, 20, 27]},
    }  # fmt: skip
    Path("mine").mkdir()
    Path("mine/config.json").write_text(json.dumps(draft))
    arguments = ["train", str(config_file), "draft.init=mine"]
    assert main(arguments) == 2
    assert "is no whole draft" in capsys.readouterr().err
    Path("mine/model.safetensors").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "was made for another target" in error and "hidden size 576 instead of 4096" in error
    assert "draft.num_hidden_layers = 1 contradicts" in error and "draft.block_size = 4 contradicts" in error


def test_a_dry_run_takes_under_two_seconds_and_never_imports_torch(config_file):
    """A wrong config and a right one, as a user starts them; `-X importtime` names every module that was imported.

    Processor time is what is measured, and held to half of the promise: other processes take nothing away from it.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for overrides, code in ((["run.max_steps=0"], 2), ([], 0)):
        arguments = ["train", str(config_file), *overrides, "--dry-run"]
        command = [sys.executable, "-X", "importtime", "-m", "dflash", *arguments]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == code, result.stderr[-2000:]
        imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}
        assert "dflash.config" in imported
        assert not {"torch", "transformers", "datasets"} & imported
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
