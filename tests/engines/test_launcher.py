"""The launcher and its ranks, a real Mooncake store, servers that stand in for SGLang; parts are killed for real."""

import json
import os
import signal
import time

import pytest
from launched import Launched, alive, command_of, descendants, in_process, online_tree

from dflash.errors import UserError
from dflash.online.store import usage
from dflash.training.run_folder import RunFolder


@pytest.fixture
def launch(tiny_target_folder, stand_in, tmp_path):
    """Starts runs, made of what `launch.tree` gives. Whatever is still there at the end is killed."""
    started = []

    def start(tree: dict, *arguments: str, **options) -> Launched:
        started.append(Launched(tree, tmp_path, *arguments, **options))
        return started[-1]

    def tree(**settings) -> dict:
        return online_tree(tiny_target_folder, tmp_path, environment=str(stand_in), **settings)

    start.tree = tree
    yield start
    for run in started:
        run.end()


def the(run: Launched, what: str) -> int:
    """Id of the one process whose command holds these words."""
    (found,) = [pid for pid in descendants(run.pid) if what in command_of(pid)]
    return found


def test_one_command_trains_as_with_the_target_and_leaves_nothing_behind(launch, tmp_path):
    tree = launch.tree()
    run = launch(tree)
    run.until_step(5)
    everything = descendants(run.pid)
    assert len(everything) >= 6  # master, two servers, torchrun, two ranks
    assert run.wait() == 0, run.said
    losses, order = in_process(tree, tmp_path)
    assert run.losses() == pytest.approx(losses, rel=2e-3)
    assert {step: sorted(names) for step, names in run.trained().items()} == {
        step: sorted(names) for step, names in order.items()
    }
    assert "The store holds 0 object(s) at the end; 0 left by this run were removed." in run.said
    assert run.status()["state"] == "finished" and "Draft: " in run.said
    assert not [pid for pid in everything if alive(pid)]
    assert {path.name for path in (run.run / "logs").iterdir()} >= {
        "master.log", "server-0.log", "server-1.log", "rank-0.log", "rank-1.log", "torchrun.log", "launcher.log",
    }  # fmt: skip


def test_sigterm_ends_everything_with_a_checkpoint_and_resume_goes_on_in_the_same_way(launch, tmp_path):
    tree = launch.tree()
    run = launch(tree, step_seconds=0.2)
    run.until_step(7)
    everything = descendants(run.pid)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 130, run.said
    stopped_at = run.status()["step"]
    assert run.status()["state"] == "stopped" and stopped_at >= 7
    assert (run.run / "checkpoints" / f"step_{stopped_at:07d}").is_dir()
    assert f"go on with: dflash train --resume {run.run}" in run.said
    assert not [pid for pid in everything if alive(pid)]
    again = launch(tree, "train", "--resume", str(run.run))
    assert again.wait() == 0, again.said
    losses, order = in_process(tree, tmp_path)
    assert again.losses() == pytest.approx(losses, rel=2e-3)
    trained = again.trained()
    assert sorted(trained) == sorted(order) and all(sorted(trained[step]) == sorted(order[step]) for step in order)


def test_a_second_ctrl_c_ends_everything_at_once_and_the_run_counts_as_stopped(launch):
    run = launch(launch.tree(), step_seconds=5.0)
    run.until_step(2)
    everything = descendants(run.pid)
    os.kill(run.pid, signal.SIGINT)
    run.until(lambda: "Asked to stop" in run.said)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130, run.said
    assert "Ended at once, since that was asked for twice" in run.said
    assert run.status()["state"] == "stopped" and "reason" not in run.status()
    assert not [pid for pid in everything if alive(pid)]


def test_a_run_that_is_stopped_while_its_ranks_start_does_not_train(launch):
    run = launch(launch.tree())
    run.until(lambda: "Training on 2 rank(s)" in run.said)
    everything = descendants(run.pid)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 130, run.said
    assert run.status()["state"] == "stopped" and not run.metrics()
    assert not [pid for pid in everything if alive(pid)]


def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(launch):
    ours, theirs = os.pipe()
    run = launch(launch.tree(), step_seconds=0.2, stderr=theirs)
    os.close(theirs)
    run.until_step(3)
    everything = descendants(run.pid)
    os.close(ours)
    os.kill(run.pid, signal.SIGHUP)
    run.wait()
    status = run.status()
    assert status["state"] == "stopped", status
    assert (run.run / "checkpoints" / f"step_{status['step']:07d}").is_dir() and status["step"] >= 3
    assert not [pid for pid in everything if alive(pid)]


def test_from_the_first_process_to_the_last_nobody_else_can_take_the_run_folder(launch):
    run = launch(launch.tree(steps=6))
    run.until((run.run / "status.json").exists)  # the first that a launcher writes
    while not run.metrics():
        with pytest.raises(UserError, match="is being trained by another process"), RunFolder(run.run).locked():
            pass
        assert run.process.poll() is None, run.said
        time.sleep(0.02)
    assert run.wait() == 0, run.said
    with RunFolder(run.run).locked():
        pass


def test_what_ended_a_run_is_told_even_when_the_launchers_own_log_cannot_be_written(launch):
    tree = launch.tree()
    run = launch(tree, step_seconds=0.2)
    run.until_step(2)
    (run.run / "logs" / "launcher.log").unlink()
    (run.run / "logs" / "launcher.log").mkdir()
    os.kill(the(run, f"--port={tree['online']['port']}"), signal.SIGKILL)
    assert run.wait() == 1
    reason = f"SGLang server http://127.0.0.1:{tree['online']['port']} ended with signal SIGKILL"
    assert reason in run.said and reason in run.status()["reason"]
    assert "The store holds 0 object(s) at the end" in run.said


def test_a_launcher_that_is_killed_takes_everything_with_it(launch):
    run = launch(launch.tree(), step_seconds=0.2)
    run.until_step(2)
    everything = descendants(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while left := [pid for pid in everything if alive(pid)]:
        assert time.monotonic() < deadline, [command_of(pid) for pid in left]
        time.sleep(0.1)


def test_without_restarts_a_killed_server_ends_the_run_with_a_checkpoint_and_a_reason(launch):
    tree = launch.tree()
    run = launch(tree, step_seconds=0.2)
    run.until_step(6)
    everything = descendants(run.pid)
    os.kill(the(run, f"--port={tree['online']['port']}"), signal.SIGKILL)
    assert run.wait() == 1
    reason = f"SGLang server http://127.0.0.1:{tree['online']['port']} ended with signal SIGKILL"
    status = run.status()
    assert reason in run.said and "serving on" in run.said  # the end of its log
    assert status["state"] == "failed" and reason in status["reason"]
    assert (run.run / "checkpoints" / f"step_{status['step']:07d}").is_dir() and status["step"] >= 6
    assert not [pid for pid in everything if alive(pid)]


def test_without_restarts_a_killed_master_ends_the_run_at_once(launch):
    run = launch(launch.tree(), step_seconds=0.2)
    run.until_step(6)
    everything = descendants(run.pid)
    os.kill(the(run, "mooncake_master"), signal.SIGKILL)
    started = time.monotonic()
    assert run.wait() == 1
    assert time.monotonic() - started < 60
    assert "The Mooncake master ended with signal SIGKILL" in run.said
    assert not [pid for pid in everything if alive(pid)]


def test_with_restarts_killed_servers_master_and_ranks_cost_time_only(launch, tmp_path):
    tree = launch.tree(on_failure="restart")
    run = launch(tree, step_seconds=0.2)
    run.until_step(6)
    os.kill(the(run, f"--port={tree['online']['port']}"), signal.SIGKILL)
    run.until_step(10)
    os.kill(the(run, "mooncake_master"), signal.SIGKILL)
    run.until_step(17)
    rank = next(pid for pid in descendants(run.pid) if command_of(pid).count("recording_dflash") and _rank(pid) == "1")
    os.kill(rank, signal.SIGKILL)
    assert run.wait() == 0, run.said
    assert "Training rank 1 ended with signal SIGKILL; the ranks go on from the last checkpoint" in run.said
    assert "The Mooncake master ended with signal SIGKILL; it is started again" in run.said
    losses, order = in_process(tree, tmp_path)
    assert run.losses() == pytest.approx(losses, rel=2e-3)
    trained = run.trained(went_back=True)
    assert sorted(trained) == sorted(order) and all(sorted(trained[step]) == sorted(order[step]) for step in order)
    assert "The store holds 0 object(s) at the end" in run.said


def _rank(pid: int) -> str | None:
    words = open(f"/proc/{pid}/environ").read().split("\0")
    return next((word.partition("=")[2] for word in words if word.startswith("RANK=")), None)


def test_a_conversation_that_servers_refuse_ends_the_run_with_its_name_and_is_not_tried_again(launch):
    tree = launch.tree(on_failure="restart", server_arguments=["--context-length=60"])
    run = launch(tree)
    assert run.wait() == 1
    assert "The features of conversation 'c" in run.said and "were refused" in run.said
    assert "started again" not in run.said and "go on from the last checkpoint" not in run.said
    assert run.status()["state"] == "failed"


def test_a_server_that_does_not_start_ends_the_run_before_any_rank(launch, stand_in):
    (stand_in / "refuse-to-start").touch()
    run = launch(launch.tree())
    assert run.wait() == 1
    assert "ended with exit code 1" in run.said and "no such device: abacus" in run.said
    assert run.status()["state"] == "failed" and not (run.run / "logs" / "torchrun.log").exists()
    assert not (run.run / "config.yaml").exists()  # the name can be used again


def test_a_server_that_never_gets_ready_is_waited_for_as_long_as_was_said(launch, stand_in):
    (stand_in / "never-healthy").touch()
    run = launch(launch.tree(start_seconds=20))
    assert run.wait() == 1
    assert "was not ready after 2" in run.said


def test_while_servers_start_a_run_can_be_stopped_and_nobody_else_takes_its_folder(launch, stand_in, tmp_path):
    (stand_in / "never-healthy").touch()
    tree = launch.tree()
    run = launch(tree)
    run.until(lambda: (run.run / "logs" / "server-1.log").exists() and run.status()["state"] == "starting")
    other = online_tree(tree["target"]["name"], tmp_path, environment=str(stand_in))
    second = launch(other)
    assert second.wait() == 2 and "is being trained by another process" in second.said
    assert run.status()["pid"] == run.pid
    everything = descendants(run.pid)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 130
    assert run.status()["state"] == "stopped"
    assert not [pid for pid in everything if alive(pid)]


def test_serve_target_tells_what_training_needs_and_training_uses_it(launch, stand_in, tmp_path):
    tree = launch.tree(steps=6)
    config = tmp_path / "config.yaml"
    serving = launch(tree, "serve-target", str(config), "--json", "--logs", str(tmp_path / "serving"))
    serving.until(lambda: '"overrides"' in serving.said)
    (told,) = [json.loads(line) for line in serving.said.splitlines() if line.startswith("{")]
    place = ["--runs", str(tmp_path / "runs"), "--name", "run"]
    run = launch(tree, "train", str(config), *told["overrides"], *place)
    assert run.wait() == 0, run.said
    assert run.step() == 6
    assert usage(f"127.0.0.1:{tree['online']['metrics_port']}").objects == 0
    everything = descendants(serving.pid)
    os.kill(serving.pid, signal.SIGTERM)
    assert serving.wait() == 0
    assert not [pid for pid in everything if alive(pid)]


def test_serve_target_tells_programs_what_it_would_start(launch, stand_in, tmp_path):
    tree = launch.tree()
    run = launch(tree, "serve-target", str(tmp_path / "config.yaml"), "--dry-run", "--json")
    assert run.wait() == 0, run.said
    commands = json.loads(run.said)["commands"]
    assert sorted(commands) == ["master", "server 0", "server 1"]
    assert f"--port={tree['online']['port']}" in commands["server 0"] and "mooncake_master" in commands["master"]


def test_ports_and_store_are_looked_at_before_anything_starts(launch):
    tree = launch.tree(in_flight=2000)
    tree["online"]["port"] = tree["online"]["metrics_port"] - 1
    run = launch(tree)
    assert run.wait() == 2
    assert "online.store_gib = 0.015625 on 2 server(s) is less than" in run.said
    assert "is the port of a server" in run.said
    assert not run.run.exists()
