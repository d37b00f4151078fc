"""The engines' environment; `make test-engines` installs it first, and so does the first test that needs it."""

import pytest

from dflash.online.environment import EngineEnvironment


@pytest.fixture(scope="session")
def environment() -> EngineEnvironment:
    environment = EngineEnvironment.at(device="cpu")
    environment.install()
    return environment
