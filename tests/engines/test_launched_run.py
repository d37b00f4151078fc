"""The whole thing: one `dflash train` with a Mooncake master, two SGLang servers and two gloo ranks; then faults."""

import os
import signal
import time
from contextlib import suppress

import pytest
from launched import Launched, alive, command_of, descendants, in_process, online_tree

from dflash.online.store import MooncakeStore, StoreSettings
from dflash.online.store_errors import OwnerLost, StoreError, StoreFull

TOLERANCE = 2e-3  # of a loss: features differ in their last bf16 bits; a wrong row would be off by more than 1e-2


@pytest.fixture(scope="module")
def reference(tiny_target_folder, tmp_path_factory):
    """Losses and conversations of the run with the target in this process."""
    folder = tmp_path_factory.mktemp("reference")
    return in_process(online_tree(tiny_target_folder, folder), folder)


@pytest.fixture(scope="module")
def undisturbed(environment, tiny_target_folder, tmp_path_factory):
    """A run that ended, and the processes that it consisted of while it went on."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Launched(online_tree(tiny_target_folder, folder, chunked_prefill=64), folder)
    try:
        run.until_step(1)
        processes = descendants(run.pid)
        assert run.wait() == 0, run.said
        yield run, processes
    finally:
        run.end()


def test_the_loss_curve_is_that_of_the_target_in_process(undisturbed, reference):
    run, _ = undisturbed
    assert run.status()["state"] == "finished" and run.step() == 30
    assert run.losses() == pytest.approx(reference[0], rel=TOLERANCE)


def test_every_conversation_is_trained_on_as_often_as_it_should_be(undisturbed, reference):
    assert_same_conversations(undisturbed[0], reference[1])


def test_the_store_is_empty_at_the_end_without_anybody_sweeping(undisturbed):
    assert "The store holds 0 object(s) at the end; 0 left by this run were removed." in undisturbed[0].said


def test_both_servers_took_part_and_no_process_is_left(undisturbed):
    run, processes = undisturbed
    (*_, last) = [record["online"] for record in run.metrics() if "online" in record]
    assert len(last["servers"]) == 2 and min(server["documents"] for server in last["servers"]) > 10
    assert last["retries"] == 0 and last["ranks"] == 2
    assert len(processes) >= 10  # each SGLang server is several
    assert not [pid for pid in processes if alive(pid)]


def test_a_killed_server_a_killed_master_and_a_full_store_cost_time_only(
    environment, tiny_target_folder, tmp_path, reference
):
    tree = online_tree(tiny_target_folder, tmp_path, on_failure="restart")
    # Slow steps: every fault has to strike while there is still something to capture, on a quick machine as well.
    run, online = Launched(tree, tmp_path, step_seconds=1.0), tree["online"]
    try:
        run.until_step(4)
        os.kill(the_process(run, f"--port={online['port']}"), signal.SIGKILL)
        run.until(lambda: "ended with signal SIGKILL; it is started again" in run.said)
        run.until_step(8)
        fill_for_a_while(f"127.0.0.1:{online['master_port']}", run)
        run.until_step(14)
        os.kill(the_process(run, "mooncake_master"), signal.SIGKILL)
        assert run.wait() == 0, run.said
    finally:
        run.end()
    assert "The Mooncake master ended with signal SIGKILL; it is started again" in run.said
    assert run.losses() == pytest.approx(reference[0], rel=TOLERANCE)
    assert_same_conversations(run, reference[1])
    (*_, last) = [record["online"] for record in run.metrics() if "online" in record]
    assert last["retries"] >= 1 and last["store_full"] >= 1
    assert "The store holds 0 object(s) at the end" in run.said


def assert_same_conversations(run: Launched, expected: dict[int, list[str]]) -> None:
    trained = run.trained()
    assert {step: sorted(names) for step, names in trained.items()} == {
        step: sorted(names) for step, names in expected.items()
    }


def the_process(run: Launched, what: str) -> int:
    """The one among the run's that was started with these words; SGLang's own children have other titles."""
    return next(pid for pid in descendants(run.pid) if what in command_of(pid))


def fill_for_a_while(master: str, run: Launched) -> None:
    """Take all the room in the store until captures fail, and then some; nothing is left of it."""
    with MooncakeStore.connect(StoreSettings(master)) as other:
        buffer, count = other.allocate(1 << 20), 0
        deadline, full_since = time.monotonic() + 60, None
        while time.monotonic() < deadline and (full_since is None or time.monotonic() - full_since < 3):
            try:
                for size in (1 << 20, 1 << 16, 1 << 12):
                    with suppress(StoreFull):
                        while run.process.poll() is None:
                            other.put({f"dflash/other/{count}": buffer[:size]})
                            count += 1
                full_since = full_since or time.monotonic()
            except OwnerLost:  # memory of the server that was killed counts as room until the master gives it up
                time.sleep(0.5)
            time.sleep(0.05)
        with suppress(StoreError):
            other.sweep("dflash/other/")
