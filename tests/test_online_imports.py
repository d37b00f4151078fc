"""What the online pipeline may import, and what it says when an engine is missing."""

import json
import subprocess
import sys

import pytest

from dflash.errors import UserError
from dflash.online.master import MasterProcess
from dflash.online.ports import free_port
from dflash.online.store import MooncakeStore, StoreSettings


def test_the_store_needs_nothing_that_a_servers_environment_lacks():
    script = "import json, sys; import dflash.online.store; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = json.loads(run.stdout)
    ours = {name for name in modules if name.startswith("dflash")}
    assert ours == {"dflash", "dflash.errors", "dflash.online", "dflash.online.store", "dflash.online.store_errors"}
    assert not {"mooncake", "sglang", "transformers", "pydantic", "yaml"} & set(modules)


def test_a_missing_mooncake_gives_a_sentence_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mooncake.store", None)
    with pytest.raises(UserError, match="cannot be used here .*install mooncake-transfer-engine-non-cuda.*libibverbs1"):
        MooncakeStore.connect(StoreSettings("127.0.0.1:1"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="mooncake_master is missing: install mooncake-transfer-engine-non-cuda"):
        MasterProcess(tmp_path / "log.txt", port=free_port(), metrics_port=free_port())


EVERYTHING = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sglang", "mooncake"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import dflash, workbench
names = [
    module.name
    for package in (dflash, workbench)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__") and ".cpu_stubs" not in module.name
]
for name in names:
    importlib.import_module(name)
assert not {"sglang", "mooncake"} & set(sys.modules)
print(len(names))
"""


def test_every_module_is_imported_without_sglang_and_mooncake():
    run = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.splitlines()[-1]) > 150
