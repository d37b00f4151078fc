"""The engines' environment: built once, quick afterwards, completed when it was cut off, one sentence when it fails."""

import json
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from dflash.cli.main import main
from dflash.errors import UserError
from dflash.online import environment as environment_module
from dflash.online.environment import EngineEnvironment
from dflash.online.installer import Installer, explain
from dflash.online.plugin_wheel import ENTRY_POINT, build_plugin_wheel, plugin_version

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_sglang_mooncake_and_the_plugin_work_in_it(environment, capsys):
    assert main(["engines", "check", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] and found["sglang"] == "0.5.23" and found["mooncake"] == "0.3.13.post1"
    assert found["dflash-workbench"] == plugin_version("cpu")
    assert found["plugin_error"] is None and found["mooncake_error"] is None


def test_a_second_installation_is_quick_and_changes_nothing(environment, capsys):
    started, before = time.monotonic(), (environment.folder / "install.log").stat().st_mtime
    assert main(["engines", "install", "--device", "cpu"]) == 0
    assert "was complete already" in capsys.readouterr().out
    assert time.monotonic() - started < 5
    assert (environment.folder / "install.log").stat().st_mtime == before


def test_an_installation_that_was_cut_off_is_completed(environment):
    site_packages = next(environment.folder.glob("lib/python3*/site-packages"))
    # As it looks when pip was killed: no stamp, and of one package some files but not its description.
    (environment.folder / "installed.json").unlink()
    shutil.rmtree(next(site_packages.glob("easydict-*.dist-info")))
    assert not environment.is_installed
    assert environment.install() and environment.is_installed
    assert list(site_packages.glob("easydict-*.dist-info"))


def test_a_plugin_of_another_version_is_replaced_and_nothing_else(environment):
    stamp = environment.folder / "installed.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"plugin": "0+plugin.000000000000"}))
    log = environment.folder / "install.log"
    size = log.stat().st_size
    assert environment.install() and environment.is_installed
    assert b".txt" not in log.read_bytes()[size:]  # no requirements were installed
    assert environment.probe()["dflash-workbench"] == plugin_version("cpu")


def test_an_environment_without_the_plugin_is_found_out(environment):
    found = {
        "sglang": "0.5.22",
        "mooncake_error": "libibverbs.so.1: cannot open",
        "plugin_error": "SGLang does not load it",
    }
    faults = environment.faults(found | {"dflash-workbench": None})
    assert len(faults) == 3 and all("dflash engines install" in fault for fault in faults)
    assert "libibverbs1" in faults[1]


def test_no_environment_at_all_is_one_sentence(tmp_path, capsys):
    assert main(["engines", "check", "--dir", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "There is no engines' environment" in error and "dflash engines install" in error


def test_without_network_the_sentence_says_so_and_the_folder_can_be_completed(tmp_path, monkeypatch, capsys):
    for name, value in (
        ("INDEX_URL", "http://127.0.0.1:9/simple"),
        ("EXTRA_INDEX_URL", ""),
        ("FIND_LINKS", ""),
        ("RETRIES", "1"),
    ):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main(["engines", "install", "--device", "cpu", "--dir", str(tmp_path / "e")]) == 2
    error = capsys.readouterr().err
    assert "the package index cannot be reached" in error and "install.log" in error and "Traceback" not in error
    assert not EngineEnvironment.at(tmp_path / "e", "cpu").is_installed


def test_a_disk_without_room_is_noticed_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(environment_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1 << 30))
    with pytest.raises(UserError, match="only 1.0 GiB are free"):
        EngineEnvironment.at(tmp_path, "cpu").install()
    assert not (tmp_path / "bin").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="thesis.tex"):
        EngineEnvironment.at(tmp_path, "cpu").install()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "WARNING: Retrying ... Temporary failure in name resolution\nERROR: No matching distribution found for x",
            "network",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)",
            "has no x==1 at all",
        ),
        ("ERROR: No matching distribution found for sglang==0.5.23", "has no sglang==0.5.23 for this Python"),
        ("ERROR: something new", "something new"),
    ],
)
def test_pips_words_become_one_that_a_user_can_act_on(said, words):
    assert words in explain(said.splitlines())


def test_pip_ends_with_the_process_that_started_it(tmp_path):
    program = f"""
from pathlib import Path
from dflash.online.installer import Installer
Installer(Path({str(tmp_path / "pip")!r}), Path({str(tmp_path / "log")!r})).install([], "something slow")
"""
    (tmp_path / "pip").write_text(f"#!/bin/sh\necho $$ > {tmp_path / 'pid'}\nexec sleep 60\n")
    (tmp_path / "pip").chmod(0o755)
    installing = subprocess.Popen([sys.executable, "-c", program], env={"PYTHONPATH": str(PROJECT.parent)})
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    installing.kill()
    installing.wait()
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_that_fails_leaves_its_output_in_the_log(tmp_path):
    installer = Installer(Path(sys.executable), tmp_path / "install.log")
    with pytest.raises(UserError, match="Installing nothing failed"):
        installer.install(["--no-such-option"], "nothing")
    assert "no such option" in (tmp_path / "install.log").read_text()


def test_the_wheel_is_one_that_pip_installs_and_names_the_entry_point_of_the_project(tmp_path):
    wheel = build_plugin_wheel(tmp_path, "cpu")
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True)
    group, name, value = ENTRY_POINT
    assert tomllib.loads(PROJECT.read_text())["project"]["entry-points"][group] == {name: value}
    installed = next(target.glob("*.dist-info")) / "entry_points.txt"
    assert installed.read_text() == f"[{group}]\n{name} = {value}\n"
    assert (target / "sgl_kernel" / "__init__.py").is_file()
    names = zipfile.ZipFile(build_plugin_wheel(tmp_path, "cuda")).namelist()
    assert not any(name.startswith(("sgl_kernel", "torchvision")) for name in names)


def test_the_stand_ins_can_be_imported_in_any_depth_and_not_called(tmp_path):
    program = """
import torchvision, sgl_kernel.kvcacheio as deep
from torchvision.transforms.v2 import functional as F, InterpolationMode
from sgl_kernel import moe_sum_reduce
table = {InterpolationMode.BICUBIC: 1}
assert table[InterpolationMode.BICUBIC] == 1 and deep.anything is deep.anything and torchvision.__version__
try:
    moe_sum_reduce(1)
except NotImplementedError as error:
    assert "sgl_kernel.moe_sum_reduce" in str(error)
else:
    raise SystemExit("it was called")
"""
    stubs = Path(environment_module.__file__).with_name("cpu_stubs")
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(stubs)})
