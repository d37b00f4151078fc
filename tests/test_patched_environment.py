"""An engines' environment with a patched SGLang: usable as it is, and never installed over."""

import sys

import pytest

from dflash.cli.main import main
from dflash.online import environment as environment_module
from dflash.online import patching
from dflash.online.environment import EngineEnvironment
from dflash.online.patching import blob_id
from dflash.online.plugin_wheel import plugin_version

ORIGINAL, PATCHED = b"capture = False\n", b"capture = True\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An environment with SGLang 0.5.14 as it was released, and a patch of one line for it."""
    header = "a/python/sglang/server.py b/python/sglang/server.py"
    text = (
        f"diff --git {header}\nindex {blob_id(ORIGINAL)}..{blob_id(PATCHED)} 100644\n"
        f"--- {header.split()[0]}\n+++ {header.split()[1]}\n@@ -1 +1 @@\n-{ORIGINAL.decode()}+{PATCHED.decode()}"
    )
    patch = tmp_path / "sglang-0.5.14.patch"
    patch.write_text(text)
    for module in (patching, environment_module):
        monkeypatch.setattr(module, "shipped_patches", lambda: {"0.5.14": patch})
    folder = tmp_path / "env"
    site_packages = folder / "lib" / "python3.11" / "site-packages"
    (site_packages / "sglang").mkdir(parents=True)
    (site_packages / "sglang" / "server.py").write_bytes(ORIGINAL)
    (site_packages / "sglang-0.5.14.dist-info").mkdir()
    (site_packages / "sglang-0.5.14.dist-info" / "METADATA").write_text("Name: sglang\nVersion: 0.5.14\n")
    (folder / "pyvenv.cfg").touch()
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def found(**changes) -> dict:
    working = {"sglang": "0.5.14", "mooncake_error": None, "plugin_error": None}
    return working | {"dflash-workbench": plugin_version("cpu")} | changes


def test_a_patched_sglang_is_no_fault_and_an_unpatched_one_is_told_both_ways(folder, capsys):
    environment = EngineEnvironment.at(folder, "cpu")
    (fault,) = environment.faults(found())
    assert f"'dflash patch apply {folder}'" in fault and "to have 0.5.23 in its place" in fault
    assert main(["patch", "apply", str(folder)]) == 0
    assert environment.faults(found()) == []


def test_no_advice_for_a_patched_environment_would_install_over_it(folder, monkeypatch):
    main(["patch", "apply", str(folder)])
    environment, asked = EngineEnvironment.at(folder, "cpu"), []
    monkeypatch.setattr(environment_module.Installer, "install", lambda self, arguments, what: asked.append(arguments))
    monkeypatch.setattr(environment_module.Installer, "create", lambda *_: pytest.fail("it is there already"))
    (fault,) = environment.faults(found(mooncake_error="no libibverbs"))
    assert "pip install mooncake-transfer-engine-non-cuda" in fault and "dflash engines" not in fault
    assert not environment.is_installed
    assert main(["engines", "install", "--dir", str(folder), "--device", "cpu"]) == 0
    (arguments,) = asked  # of the plugin alone
    assert plugin_version("cpu") in arguments[0] and "--no-deps" in arguments
    assert environment.is_installed
    main(["patch", "revert", str(folder)])
    assert not environment.is_installed


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.5.23", "captures without a patch: nothing is to be done"),
        ("0.5.24", "is untested: use 0.5.23, which captures without a patch"),
        ("0.5.22", "There is no patch for SGLang 0.5.22"),
    ],
)
def test_only_what_was_tried_is_said_to_need_no_patch(folder, capsys, version, said):
    (metadata,) = folder.rglob("METADATA")
    metadata.write_text(f"Name: sglang\nVersion: {version}\n")
    assert main(["patch", "apply", str(folder)]) == 2
    assert said in capsys.readouterr().err
