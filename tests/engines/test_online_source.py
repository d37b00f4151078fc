"""The online source against a real Mooncake store, whose owners are killed, whose master dies, which fills up."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from online_fakes import LAYER_IDS, WIDTH, features_of

import dflash
from dflash.data.rows import Row
from dflash.features.prefetch import Prefetcher
from dflash.features.source import looking_ahead
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.master import MasterProcess
from dflash.online.ports import free_port
from dflash.online.source import OnlineFeatures
from dflash.online.store import MooncakeStore, StoreSettings, key_prefix, usage

if importlib.util.find_spec("mooncake") is None:
    pytest.skip("mooncake is not installed: `make test-engines` installs it", allow_module_level=True)

SEGMENT = 16 << 20  # the least that Mooncake takes
PREFIX = key_prefix("run", "0")


class CaptureProcess:
    """A capture server whose features lie in its own memory, and die with it."""

    def __init__(self, master: str) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join(map(str, (here.parent, Path(dflash.__file__).parents[1])))
        self.process = subprocess.Popen(
            [sys.executable, str(here / "capture_process.py"), master, str(SEGMENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self.address = ""

    def wait_ready(self) -> None:
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the capture process ended"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def ports() -> dict[str, int]:
    return {"port": free_port(), "metrics_port": free_port()}


@pytest.fixture
def master(tmp_path, ports):
    with MasterProcess(tmp_path / "master.log", **ports) as process:
        yield process


@pytest.fixture
def servers(master):
    started = [CaptureProcess(master.address) for _ in range(2)]
    for server in started:
        server.wait_ready()
    yield started
    for server in started:
        server.kill()


@pytest.fixture
def source(master, servers):
    store = MooncakeStore.connect(StoreSettings(master.address, master.metrics))
    layout = Layout(LAYER_IDS, WIDTH, torch.bfloat16)
    settings = FetchSettings(PREFIX, in_flight=4, answer_seconds=20, patience=60)
    source = OnlineFeatures([server.address for server in servers], store, layout, settings)
    yield source
    source.close()


def rows(count: int) -> list[Row]:
    return [Row((f"c{n}",), [(n * 31 + i) % 200 + 1 for i in range(50 + n)], [True] * (50 + n)) for n in range(count)]


def train(source: OnlineFeatures, count: int, after: dict[int, object]) -> list[str]:
    """Go through `count` rows, with something happening after some of them; the ids in the order of their use."""
    used = []
    with Prefetcher(source, looking_ahead(source, [[row] for row in rows(count)], list), depth=2) as batches:
        for number, (features, row) in enumerate(zip(batches, rows(count), strict=True)):
            assert torch.equal(features[0], features_of(row.input_ids))
            used += row.ids
            if number in after:
                after[number]()
    return used


def ids(count: int) -> list[str]:
    return [f"c{n}" for n in range(count)]


def test_features_cross_processes_and_the_store_is_empty_at_the_end(source, master):
    assert train(source, 40, {}) == ids(40)
    assert usage(master.metrics).objects == 0
    assert {server.documents > 5 for server in source.statistics().servers} == {True}


def test_a_server_killed_with_the_features_it_held_costs_time_only(source, servers, master):
    assert train(source, 40, {10: servers[0].kill}) == ids(40)
    statistics = source.statistics()
    assert statistics.retries >= 1 and statistics.servers[0].failures >= 1
    assert statistics.servers[1].documents >= 20
    source.close()
    assert usage(master.metrics).objects == 0


def test_a_master_that_is_killed_and_started_again_costs_time_only(source, master, ports, tmp_path):
    replacement = []

    def replace() -> None:
        os.kill(master.child.pid, signal.SIGKILL)
        time.sleep(1)
        replacement.append(MasterProcess(tmp_path / "second.log", **ports))

    try:
        assert train(source, 40, {10: replace}) == ids(40)
        assert source.statistics().retries >= 1
        source.close()
        assert usage(replacement[0].metrics).objects == 0
    finally:
        replacement[0].stop()


def test_a_store_filled_by_others_makes_it_wait_until_there_is_room(source, master):
    other = MooncakeStore.connect(StoreSettings(master.address))
    buffer = other.allocate(1 << 20)
    filled = 0

    def fill() -> None:
        nonlocal filled
        for size in (1 << 20, 1 << 16, 1 << 10):
            while True:
                try:
                    other.put({f"dflash/other/{filled}": buffer[:size]})
                    filled += 1
                except Exception as error:
                    assert type(error).__name__ == "StoreFull"
                    break

    fill()
    with Prefetcher(source, looking_ahead(source, [[row] for row in rows(6)], list), depth=2) as batches:
        deadline = time.monotonic() + 10
        while source.statistics().retries < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "StoreFull" in source.statistics().last_trouble
        assert other.sweep("dflash/other/") == filled
        assert len(list(batches)) == 6
    other.close()
