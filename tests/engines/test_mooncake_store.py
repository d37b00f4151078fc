"""The store against a real Mooncake master over TCP, its objects in another process, every fault injected for real."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from waiting import until

import dflash
from dflash.errors import UserError
from dflash.online.child import ChildFailed
from dflash.online.master import MasterProcess
from dflash.online.ports import free_port
from dflash.online.store import MooncakeStore, StoreSettings, key_prefix
from dflash.online.store_errors import (
    KeyTaken,
    MasterDown,
    MissingKey,
    NotRegistered,
    OwnerLost,
    StoreError,
    StoreFull,
)

if importlib.util.find_spec("mooncake") is None:
    pytest.skip("mooncake is not installed: `make test-engines` installs it", allow_module_level=True)

MIB = 1 << 20
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(dflash.__file__).parents[1])}  # for a checkout, not installed


class Owner:
    """The process whose segment the objects lie in."""

    def __init__(self, master: str, segment: int = 16 * MIB) -> None:
        script = Path(__file__).with_name("store_owner.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), master, str(segment)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        while (line := self.process.stdout.readline()) != "ready\n":
            assert line, "the owner ended"

    def put(self, key: str, size: int = MIB, fill: int = 7) -> str:
        self.process.stdin.write(f"{key} {size} {fill}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def new_ports() -> dict[str, int]:
    return {"port": free_port(), "metrics_port": free_port()}


@pytest.fixture(scope="module")
def lasting_owner(master):
    owner = Owner(master.address)
    yield owner
    owner.kill()


@pytest.fixture
def owner(lasting_owner, store):
    """Its segment is empty at the start of a test."""
    store.sweep("dflash/a/"), store.sweep("dflash/b/")
    return lasting_owner


@pytest.fixture
def store(master):
    with MooncakeStore.connect(StoreSettings(master.address, master.metrics)) as store:
        yield store


@dataclass
class Doomed:
    """A master of one test's own with an owner and a reader, to be killed."""

    ports: dict[str, int]
    master: MasterProcess
    owner: Owner
    store: MooncakeStore
    buffer: torch.Tensor


@pytest.fixture
def doomed(tmp_path):
    ports = new_ports()
    with MasterProcess(tmp_path / "master.log", **ports) as master:
        owner = Owner(master.address)
        with MooncakeStore.connect(StoreSettings(master.address, master.metrics)) as store:
            yield Doomed(ports, master, owner, store, store.allocate(2 * MIB))
        owner.kill()


@pytest.fixture
def buffer(store) -> torch.Tensor:
    return store.allocate(2 * MIB)


def test_tensors_of_another_process_arrive_bit_for_bit_and_leave_no_trace_after_removal(store, owner, buffer):
    keys = ["dflash/a/1", "dflash/a/2"]
    assert [owner.put(key, fill=fill) for key, fill in zip(keys, (1, 2))] == ["ok", "ok"]
    assert store.usage().objects == 2 and store.usage().used_bytes == 2 * MIB

    store.get({keys[0]: buffer[:MIB], keys[1]: buffer[MIB:]})

    assert (buffer[:MIB] == 1).all() and (buffer[MIB:] == 2).all()
    assert store.remove(keys) == 2  # although the reads hold leases on them
    assert store.usage().objects == store.usage().used_bytes == 0
    assert store.usage().capacity_bytes == 16 * MIB


def test_bf16_tensors_of_any_values_survive_the_way_there_and_back(store, owner):
    written, read = (store.allocate(MIB).view(torch.bfloat16).view(512, -1) for _ in range(2))
    written.copy_(torch.randn(written.shape, generator=torch.Generator().manual_seed(0)))
    written[0, 0], written[0, 1] = float("nan"), float("inf")
    store.put({"dflash/a/bf16": written})

    store.get({"dflash/a/bf16": read})

    assert torch.equal(read.view(torch.int16), written.view(torch.int16))


def test_missing_keys_are_named_and_found_ones_do_not_hide_them(store, owner, buffer):
    owner.put("dflash/a/here")

    with pytest.raises(MissingKey, match="dflash/a/gone") as error:
        store.get({"dflash/a/here": buffer[:MIB], "dflash/a/gone": buffer[MIB:]})

    assert error.value.keys == ("dflash/a/gone",)
    assert store.remove(["dflash/a/gone"]) == 0


@pytest.mark.parametrize("size", [MIB // 2, 2 * MIB])
def test_an_object_of_another_size_than_expected_is_an_error(store, owner, buffer, size):
    owner.put("dflash/a/x", size=MIB)
    with pytest.raises(StoreError, match=f"has {MIB} bytes, {size} were expected"):
        store.get({"dflash/a/x": buffer[:size]})


def test_a_full_store_says_so_at_once_keeps_what_it_holds_and_takes_more_after_removal(store, owner, buffer):
    answers = [owner.put(f"dflash/a/{i}", fill=i) for i in range(20)]
    assert set(answers) == {"ok", "StoreFull"} and answers.index("StoreFull") >= 14
    started = time.monotonic()
    with pytest.raises(StoreFull, match="raise its size"):
        store.put({"dflash/a/mine": buffer})
    assert time.monotonic() - started < 1

    for index, answer in enumerate(answers):  # nothing was evicted to make room
        if answer == "ok":
            store.get({f"dflash/a/{index}": buffer[:MIB]})
            assert (buffer[:MIB] == index).all()
    store.remove(["dflash/a/0", "dflash/a/1", "dflash/a/2"])
    store.put({"dflash/a/mine": buffer})


def test_a_batch_that_does_not_fit_as_a_whole_leaves_nothing_behind(store, owner, buffer):
    for index in range(14):
        assert owner.put(f"dflash/a/{index}") == "ok"
    with pytest.raises(StoreFull):
        store.put({f"dflash/b/{i}": buffer[:MIB] for i in range(4)})
    assert store.sweep("dflash/b/") == 0
    assert store.usage().objects == 14


def test_a_taken_key_is_refused_and_keeps_its_first_content(store, owner, buffer):
    owner.put("dflash/a/x", fill=1)
    with pytest.raises(KeyTaken, match="dflash/a/x"):
        store.put({"dflash/a/x": buffer[:MIB].fill_(2)})
    store.get({"dflash/a/x": buffer[:MIB]})
    assert (buffer[:MIB] == 1).all()


def test_memory_that_was_not_registered_is_refused_although_tcp_would_take_it(store, owner, buffer):
    owner.put("dflash/a/x")
    with pytest.raises(NotRegistered):
        store.get({"dflash/a/x": torch.empty(MIB, dtype=torch.uint8)})
    with pytest.raises(NotRegistered):
        store.put({"dflash/a/y": torch.empty(MIB, dtype=torch.uint8)})
    store.release(buffer)
    with pytest.raises(NotRegistered):
        store.get({"dflash/a/x": buffer[:MIB]})
    with pytest.raises(ValueError, match="not contiguous"):
        store.put({"dflash/a/y": store.allocate(MIB).view(1024, 1024).t()})


def test_a_sweep_removes_one_generation_and_no_other_even_what_was_just_read(store, owner, buffer):
    for key in ("dflash/a/0/x", "dflash/a/1/y", "dflash/aa/0/x", "dflash/b/0/x"):
        owner.put(key, size=1024)
    store.get({"dflash/a/0/x": buffer[:1024]})

    assert store.sweep(key_prefix("a", "1")) == 1
    assert store.sweep(key_prefix("a")) == 1
    assert store.sweep(key_prefix("a")) == 0

    assert store.usage().objects == 2
    assert store.sweep(key_prefix("aa")) == 1
    with pytest.raises(ValueError):
        store.sweep("dflash/.*/")
    with pytest.raises(ValueError):
        key_prefix(".*")


def test_all_that_is_there_can_be_named(doomed):
    assert doomed.store.keys() == []
    keys = ["dflash/a/0/rank0/x", "dflash/probe/y"]
    for key in keys:
        doomed.owner.put(key, size=1024)
    assert sorted(doomed.store.keys()) == keys
    doomed.store.remove(keys[:1])
    assert doomed.store.keys() == keys[1:]
    doomed.master.stop()
    with pytest.raises(MasterDown, match="metrics"):
        doomed.store.keys()


def test_a_dead_owner_is_an_error_at_every_read_until_its_objects_are_gone(doomed):
    store, buffer = doomed.store, doomed.buffer
    for key in ("dflash/a/1", "dflash/a/2"):
        assert doomed.owner.put(key) == "ok"
    doomed.owner.kill()

    for key in ("dflash/a/1", "dflash/a/2"):
        with pytest.raises(OwnerLost, match="does not answer"):
            store.get({key: buffer[:MIB]})
    with pytest.raises(OwnerLost):
        store.put({"dflash/a/3": buffer})

    until(lambda: store.usage().capacity_bytes == 0, seconds=12)
    with pytest.raises(MissingKey):
        store.get({"dflash/a/1": buffer[:MIB]})
    with pytest.raises(StoreFull):
        store.put({"dflash/a/3": buffer})


def test_a_dead_master_is_noticed_and_the_same_clients_go_on_with_a_new_one(tmp_path, doomed):
    master, store, buffer = doomed.master, doomed.store, doomed.buffer
    assert doomed.owner.put("dflash/a/old") == "ok"
    os.kill(master.child.pid, signal.SIGKILL)
    until(lambda: master.child.returncode is not None, seconds=2)
    assert master.child.returncode == -signal.SIGKILL and not store.alive()

    with pytest.raises(MasterDown):  # the first call may find Mooncake waiting, for 4.3 s
        store.put({"dflash/a/x": buffer})
    started = time.monotonic()
    for call in (
        lambda: store.get({"dflash/a/old": buffer[:MIB]}),
        lambda: store.put({"dflash/a/x": buffer}),
        lambda: store.remove(["dflash/a/old"]),
        lambda: store.sweep("dflash/a/"),
        store.usage,
    ):
        with pytest.raises(MasterDown):
            call()
    assert time.monotonic() - started < 2  # not 4.3 s each

    with MasterProcess(tmp_path / "second.log", **doomed.ports):
        until(store.alive, seconds=2)
        with pytest.raises(MissingKey):
            store.get({"dflash/a/old": buffer[:MIB]})
        # Its owner mounts the segment again by itself.
        until(lambda: doomed.owner.put("dflash/a/new", fill=3) == "ok", seconds=12)
        store.get({"dflash/a/new": buffer[:MIB]})
        assert (buffer[:MIB] == 3).all()


def test_connecting_without_a_master_fails_at_once_and_says_what_to_do():
    port = free_port()
    started = time.monotonic()
    with pytest.raises(UserError, match="No Mooncake master answers at '127.0.0.1:.*start one"):
        MooncakeStore.connect(StoreSettings(f"127.0.0.1:{port}"))
    assert time.monotonic() - started < 5  # not 90 s
    with pytest.raises(UserError, match="host:port"):
        MooncakeStore.connect(StoreSettings("localhost"))


def test_a_closed_client_refuses_calls_instead_of_crashing(master, owner):
    store = MooncakeStore.connect(StoreSettings(master.address))
    buffer = store.allocate(MIB)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get({"dflash/a/x": buffer})
    with pytest.raises(StoreError, match="closed"):
        store.allocate(MIB)


def test_threads_share_a_client_and_closing_it_waits_for_their_calls(master, owner):
    for index in range(8):
        assert owner.put(f"dflash/a/{index}", fill=index) == "ok"
    store = MooncakeStore.connect(StoreSettings(master.address))
    buffers = [store.allocate(MIB) for _ in range(4)]
    problems, reads = [], []

    def read(worker: int) -> None:
        try:
            while True:
                for index in range(worker, 8, 4):
                    store.get({f"dflash/a/{index}": buffers[worker]})
                    reads.append(bool((buffers[worker] == index).all()))
        except StoreError as error:
            problems.append(str(error))

    threads = [threading.Thread(target=read, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    store.close()
    for thread in threads:
        thread.join(5)
    assert problems == ["This client of the store is closed."] * 4
    assert len(reads) > 20 and all(reads)


def test_a_port_in_use_is_refused_before_anything_starts(master, tmp_path):
    port = int(master.address.rpartition(":")[2])
    with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1 for Mooncake's master cannot be used"):
        MasterProcess(tmp_path / "other.log", port=port, metrics_port=free_port())


def test_a_master_that_ended_is_reported_with_its_signal_and_the_end_of_its_log(tmp_path):
    master = MasterProcess(tmp_path / "master.log", **new_ports())
    until(lambda: "Master service started" in master.child.log_tail(), seconds=10)
    os.kill(master.child.pid, signal.SIGKILL)
    until(lambda: master.child.returncode is not None, seconds=2)
    with pytest.raises(ChildFailed, match=r"Mooncake master ended with signal SIGKILL(.|\n)*Master service started"):
        master.child.check()
    master.stop()


def test_no_master_outlives_a_parent_that_was_killed(tmp_path):
    script = (
        "import sys, time; from dflash.online.master import MasterProcess\n"
        f"master = MasterProcess({str(tmp_path / 'master.log')!r}, **{new_ports()!r})\n"
        "print(master.child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    master = int(parent.stdout.readline())
    os.kill(master, 0)
    parent.kill()
    parent.wait()
    until(lambda: not _runs(master), seconds=3)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie: nobody may reap it in a container without an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
