"""The engines' environment, a Mooncake master, and a stand-in for SGLang where SGLang is not the question."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from dflash.online.capture_settings import CaptureSettings
from dflash.online.environment import EngineEnvironment
from dflash.online.master import MasterProcess
from dflash.online.ports import free_port
from dflash.online.server import ServerProcess
from dflash.online.server_settings import ServerSettings

_START_SECONDS = 1200.0  # 30 on a machine that does nothing else


@pytest.fixture(scope="session")
def environment() -> EngineEnvironment:
    """SGLang's; `make test-engines` installs it first, and so does the first test that needs it."""
    environment = EngineEnvironment.at(device="cpu")
    environment.install()
    return environment


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """One for all tests of a module, so that its store holds no segments but theirs."""
    log = tmp_path_factory.mktemp("master") / "master.log"
    with MasterProcess(log, port=free_port(), metrics_port=free_port()) as process:
        yield process


@pytest.fixture(scope="module")
def serve(environment, master, tmp_path_factory) -> Callable[..., ServerProcess]:
    """`serve(server settings, **capture settings)`: an SGLang server that is ready, for all tests of a module."""
    with ExitStack() as running:

        def start(settings: ServerSettings, **capture) -> ServerProcess:
            log = tmp_path_factory.mktemp("server") / "server.log"
            into = CaptureSettings(master.address, **{"segment_bytes": 16 << 20, **capture})
            variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            server = running.enter_context(ServerProcess(settings, into, environment, log, variables))
            server.wait_ready(_START_SECONDS)
            return server

        yield start


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A folder that looks like the engines' environment, whose Python runs `stand_in_server.py` whatever it is told.

    Files in it make servers misbehave: "refuse-to-start", and those that `stand_in_server.py` names.
    """
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    script = Path(__file__).with_name("stand_in_server.py")
    python.write_text(
        "#!/bin/sh\nshift 3\n"
        f'[ -e "{folder}/refuse-to-start" ] && echo "no such device: abacus" && exit 1\n'
        f'STAND_IN="{folder}" exec "{sys.executable}" "{script}" "$@"\n'
    )
    python.chmod(0o755)
    environment = EngineEnvironment(folder, "cpu")
    (folder / "installed.json").write_text(json.dumps(environment._wanted()))
    return folder
