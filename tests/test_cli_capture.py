"""`dflash capture` as a user meets it: it resumes after kill -9, survives a full disk and never shares a folder."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml

from dflash.cli.main import main
from dflash.config import load_config
from dflash.data.load import load_conversations
from dflash.data.rows import build_rows
from dflash.features.cache_folder import CacheFolder
from dflash.features.identity import FeatureIdentity
from dflash.features.source import open_source
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft

LAYER_IDS = [1, 2, 3]  # what three features of six layers take by default
BYTES_PER_TOKEN = 3 * 32 * 4


@pytest.fixture
def config_file(tiny_target_folder, tmp_path) -> Path:
    """A config whose 60 conversations give about 2 MiB of features."""
    write_talk(tmp_path / "talk.jsonl", 60)
    tree = {
        "target": {"name": tiny_target_folder, "dtype": "float32"},
        "draft": {"num_hidden_layers": 1, "num_features": 3, "block_size": 4},
        "data": {"train": [str(tmp_path / "talk.jsonl")], "validation_size": 1, "max_length": 128},
        "run": {"autocast": False},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def write_talk(path: Path, count: int) -> None:
    with open(path, "w") as file:
        for i in range(count):
            said = f"number {i} " + "and so on " * (4 + i % 5)
            messages = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"id": f"c{i}", "messages": messages}) + "\n")


def assert_complete(config_file, target, out) -> None:
    """Every conversation is in the cache, and equals what the target gives now."""
    config = load_config(config_file, ["features.source=cache", f"features.cache={out}"])
    items = load_conversations(config.data, target.tokenizer).rendered
    rows = build_rows(items, max_length=128, packing=False)
    source = open_source(config, target, LAYER_IDS, rows)
    for row in rows:
        assert torch.equal(source([row]), target.features(torch.tensor([row.input_ids]), LAYER_IDS))
    source.close()


def indexed(shard: Path) -> bool:
    return shard.with_suffix(".json").exists()


def test_a_capture_reports_what_it_wrote_and_finds_it_there_the_next_time(config_file, tiny_target, tmp_path, capsys):
    out = tmp_path / "cache"
    arguments = ["capture", str(config_file), "--out", str(out), "--shard-mb", "1", "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("60 conversations of ") and "GiB free" in printed.err, "estimated beforehand"
    report = json.loads(printed.out)
    shards = list(out.glob("*.safetensors"))
    assert report["documents"] == 60 and report["resumed"] == 0 and report["shards"] == len(shards) > 1
    assert report["bytes"] == sum(path.stat().st_size for path in shards) > report["tokens"] * BYTES_PER_TOKEN
    assert all(path.stat().st_size < 1.02 * 2**20 for path in shards), "the size of a shard is bounded"
    assert {path.stat().st_mode for path in shards} == {(out / "cache.json").stat().st_mode}
    assert_complete(config_file, tiny_target, out)
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["documents"], again["resumed"], again["shards"]) == (0, 60, 0)


def test_a_capture_that_has_nothing_to_do_says_so_without_importing_torch(config_file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "cache"
    arguments = ["capture", str(config_file), "--out", str(out), "--shard-mb", "1", "--json"]
    assert main(arguments) == 0
    capsys.readouterr()

    def again(*more: str) -> tuple[dict, bool]:
        """The report, and whether torch was imported for it."""
        code = (
            "import sys; from dflash.cli.main import main; code = main(sys.argv[1:])\n"
            "print('torch' in sys.modules); sys.exit(code)"
        )
        root = str(Path(__file__).resolve().parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *arguments, *more]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        report, imported = result.stdout.splitlines()
        return json.loads(report), imported == "True"

    report, imported = again()
    assert (report["documents"], report["resumed"], report["rejected"]) == (0, 60, 0) and not imported
    assert again("run.max_steps=7", "data.validation_size=3") == (report, False), "what the features do not depend on"
    write_talk(tmp_path / "talk.jsonl", 60)  # the same, written later: looked at again
    (more, imported), (last, quick) = again(), again()
    assert imported and not quick and more["resumed"] == last["resumed"] == 60
    shard = sorted(out.glob("shard-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(subprocess.CalledProcessError):
        again()  # the cache itself finds the damage


def test_after_a_capture_for_online_features_the_printed_command_trains(config_file, tmp_path, capsys):
    tree = yaml.safe_load(config_file.read_text())
    tree["features"] = {"source": "online"}
    tree["online"] = {"num_servers": 2, "in_flight": 8}
    config_file.write_text(yaml.safe_dump(tree))
    with open(tmp_path / "talk.jsonl", "a") as file:  # too short for a block of four: an online run leaves it out
        answer = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "a"}]
        file.write(json.dumps({"id": "short", "messages": answer}) + "\n")
    command = ["capture", str(config_file), "--out", str(tmp_path / "cache"), "online.patience=30", "run.max_steps=2"]
    assert main(command) == 0
    (advice,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Train from them: ")]
    words = shlex.split(advice.removeprefix("Train from them: "))
    assert words[0] == "dflash" and "run.max_steps=2" in words and "online.patience=30" not in words
    here = ["--runs", str(tmp_path / "runs"), "--name", "run", "run.device=cpu", "run.batch_size=4"]
    assert main([*words[1:], *here]) == 0
    assert (tmp_path / "runs" / "run" / "checkpoints").is_dir()


def test_answers_that_servers_are_to_give_later_are_not_captured(config_file, tmp_path, capsys):
    command = ["capture", str(config_file), "--out", str(tmp_path / "cache"), "features.source=online"]
    assert main([*command, "online.regenerate=true"]) == 2
    assert "make them with `dflash regenerate`" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_new_conversations_are_added_to_a_cache(config_file, tiny_target, tmp_path, capsys):
    arguments = ["capture", str(config_file), f"features.cache={tmp_path / 'cache'}", "features.source=cache"]
    assert main(arguments) == 0
    write_talk(tmp_path / "talk.jsonl", 64)
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'cache'}: 4 conversations written") and "60 were there already" in said
    assert_complete(config_file, tiny_target, tmp_path / "cache")


def test_kill_9_in_the_middle_loses_no_complete_shard(config_file, tiny_target, tmp_path, capsys):
    write_talk(tmp_path / "talk.jsonl", 400)
    out = tmp_path / "cache"
    command = [sys.executable, "-m", "dflash", "capture", str(config_file), "--out", str(out), "--shard-mb", "1"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not (out / "shard-00001.json").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    complete = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors") if indexed(path)}
    assert main(["capture", str(config_file), "--out", str(out), "--shard-mb", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["resumed"] < 400 and report["resumed"] + report["documents"] == 400
    assert all(path.stat().st_mtime_ns == written for path, written in complete.items())
    assert_complete(config_file, tiny_target, out)


def test_what_a_kill_can_leave_behind_is_swept_up(config_file, tiny_target, tmp_path):
    out = tmp_path / "cache"
    arguments = ["capture", str(config_file), "--out", str(out), "--shard-mb", "1"]
    assert main(arguments) == 0
    (out / ".staging").mkdir()
    (out / ".staging/.tmpAbC123").write_bytes(b"half a shard")
    (out / ".shard-00001.json.4711.tmp").write_text("half an index")
    (out / "shard-00001.json").unlink()  # the shard was there before its index
    (out / "shard-00077.safetensors").write_bytes(b"without an index, too")
    assert main(arguments) == 0
    assert all(map(indexed, out.glob("*.safetensors")))
    assert_complete(config_file, tiny_target, out)
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    (tmp_path / "early").mkdir()  # killed before cache.json was complete
    (tmp_path / "early/.lock").touch()
    (tmp_path / "early/.cache.json.4711.tmp").write_text("half")
    assert main(["capture", str(config_file), "--out", str(tmp_path / "early")]) == 0


def test_two_writers_never_share_a_cache(config_file, tiny_target, tmp_path, capsys):
    out = tmp_path / "cache"
    identity = FeatureIdentity.of(load_config(config_file), tiny_target, LAYER_IDS)
    with CacheFolder(out).opened_for_writing(identity):
        assert main(["capture", str(config_file), "--out", str(out)]) == 2
        assert "Another process is capturing into" in capsys.readouterr().err
    assert main(["capture", str(config_file), "--out", str(out)]) == 0


def test_a_disk_without_enough_room_is_refused_before_anything_is_computed(config_file, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("dflash.features.capture.shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    monkeypatch.setattr("dflash.target.TargetModel.features", lambda *_: pytest.fail("a forward was run"))
    assert main(["capture", str(config_file), "--out", str(tmp_path / "cache")]) == 2
    error = capsys.readouterr().err
    assert "60 conversations take " in error and "data.limit" in error and error.strip().count("\n") == 0
    assert not list((tmp_path / "cache").glob("shard-*"))


def check_full(config_file, target, out, capsys, make_room) -> None:
    arguments = ["capture", str(config_file), "--out", str(out), "--shard-mb", "1"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not be written: " in error and "1 complete shard" in error and "the same command goes on" in error
    assert [path.name for path in out.glob("shard-*")] and not list(out.glob(".staging/*"))
    make_room()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] > 0
    assert_complete(config_file, target, out)


@pytest.fixture
def small_disk(tmp_path):
    """A mounted tmpfs of 1.5 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_disk_that_fills_up_keeps_the_complete_shards(config_file, tiny_target, small_disk, capsys, monkeypatch):
    # The room was there when it was checked; something else took it.
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("dflash.features.capture.shutil.disk_usage", lambda _: usage(10**9, 0, 10**9))

    def make_room():
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)

    check_full(config_file, tiny_target, small_disk / "cache", capsys, make_room)


def test_a_limit_on_file_sizes_is_one_sentence_too(config_file, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        assert main(["capture", str(config_file), "--out", str(tmp_path / "cache")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written: File too large; 0 complete shards" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", "cache.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No folder for the features was given"),
        (["features.source=cache", "features.cache=b", "--out", "a"], "contradicts features.cache = 'b'"),
        (["--out", "other"], "holds other files"),
        (["--out", "other/file"], "could not be written: "),
        (["data.train=[none.jsonl]", "--out", "a"], "none.jsonl"),
        (["data.min_supervised=120", "--out", "a"], "None of the conversations in "),
        (["draft.target_layer_ids=[1,2,6]", "--out", "a"], "whose layers are 0 to 5"),
        (["run.device=abacus", "--out", "a"], "'abacus'"),
        (["--out", "a", "--shard-mb", "0"], "not a whole number of 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(config_file, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    try:
        code = main(["capture", str(config_file), *arguments])
    except SystemExit as error:
        code = error.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and said in error and "\n" not in error, error
    assert (tmp_path / "other/file").read_text() == "mine"


def test_a_cache_of_another_run_is_not_written_into(config_file, tmp_path, capsys):
    out = str(tmp_path / "cache")
    assert main(["capture", str(config_file), "--out", out]) == 0
    before = sorted(os.listdir(out))
    assert main(["capture", str(config_file), "draft.target_layer_ids=[0,2,3]", "--out", out]) == 2
    assert "captured with layer_ids [1, 2, 3], the run has [0, 2, 3]; give another folder" in capsys.readouterr().err
    assert sorted(os.listdir(out)) == before


def test_the_layers_of_a_draft_to_continue_are_captured(config_file, tiny_target, tmp_path):
    shape = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, target_layer_ids=[0, 3, 4], block_size=4)
    DFlashDraft(shape).save_pretrained(tmp_path / "draft")
    tree = yaml.safe_load(config_file.read_text())
    tree["draft"] = {"init": str(tmp_path / "draft")}
    config_file.write_text(yaml.safe_dump(tree))
    assert main(["capture", str(config_file), "--out", str(tmp_path / "cache")]) == 0
    assert json.loads((tmp_path / "cache/cache.json").read_text())["identity"]["layer_ids"] == [0, 3, 4]
