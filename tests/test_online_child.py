"""Supervised processes: told apart by how they ended, and none of them left behind."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import waiting

import dflash
from dflash.online.child import Child, ChildFailed

until = partial(waiting.until, seconds=10)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie: nobody may reap it in a container without an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_ends_before_it_is_ready_is_reported_with_exit_code_and_its_own_lines(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("a line of an earlier process\n")
    with Child("The engine", ["sh", "-c", "echo no such model >&2; exit 3"], log) as child:
        with pytest.raises(ChildFailed, match=r"^The engine ended with exit code 3\. .*\nno such model$") as error:
            child.wait_until(lambda: False, timeout=20)
    assert "earlier" not in str(error.value)


def test_a_process_that_does_not_get_ready_is_reported_after_the_time_limit(tmp_path):
    with Child("The engine", ["sleep", "60"], tmp_path / "log.txt") as child:
        with pytest.raises(ChildFailed, match="was not ready after 0.2 s"):
            child.wait_until(lambda: False, timeout=0.2)
    assert child.returncode == -signal.SIGTERM


def test_a_command_that_does_not_exist_is_reported_not_waited_for(tmp_path):
    with Child("The engine", ["no-such-command"], tmp_path / "log.txt") as child:
        with pytest.raises(ChildFailed, match="exit code 1(.|\n)*No such file"):
            child.wait_until(lambda: False, timeout=20)


def test_stopping_ends_the_whole_group_even_a_member_that_ignores_sigterm(tmp_path):
    stubborn = "trap '' TERM; echo $$; while true; do sleep 0.1; done"
    child = Child("The engine", ["sh", "-c", 'sh -c "$0" & wait', stubborn], tmp_path / "log.txt")
    until(lambda: child.log_tail().strip().isdecimal())
    member = int(child.log_tail())
    assert runs(member)
    child.stop(grace=0.3)
    child.stop()
    until(lambda: not runs(member), seconds=2)
    assert child.returncode is not None


def test_a_process_that_the_kernel_does_not_end_is_told_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("dflash.online.child._KILLED_SECONDS", 0.2)
    child = Child("The engine", ["sleep", "60"], tmp_path / "log.txt")
    with monkeypatch.context() as patch:
        patch.setattr(child, "_signal", lambda number: None)  # as one that hangs in a driver takes it
        with pytest.raises(ChildFailed, match=rf"The engine \(process {child.pid}\) was killed .* and is still there"):
            child.stop(grace=0.1)
    child.stop()
    assert child.returncode is not None


def test_the_end_of_a_log_is_short_whatever_its_lines_are(tmp_path):
    log = tmp_path / "log.txt"
    script = "import sys; sys.stdout.write('x' * (10 << 20) + '\\nno memory\\n' + 'y' * 5000)"
    with Child("The engine", [sys.executable, "-c", script], log) as child:
        until(lambda: child.returncode is not None)
    assert log.stat().st_size > 10 << 20
    long, said, other = child.log_tail().splitlines()
    assert said == "no memory" and long == f"{'x' * 500} ... {'x' * 500}" and other == f"{'y' * 500} ... {'y' * 500}"


def test_how_a_process_ended_is_told_even_when_its_log_is_gone_or_its_signal_has_no_name(tmp_path):
    with Child("The engine", ["sh", "-c", "kill -40 $$"], tmp_path / "log.txt") as child:
        until(lambda: child.returncode is not None)
        (tmp_path / "log.txt").unlink()
        with pytest.raises(ChildFailed, match=r"ended with signal 40\. (.|\n)*cannot be read: No such file"):
            child.wait_until(lambda: False, timeout=20)


def test_the_environment_is_what_was_given(tmp_path):
    environment = {**os.environ, "DFLASH_TEST_WORD": "orchid"}
    with Child("The engine", ["sh", "-c", "echo $DFLASH_TEST_WORD"], tmp_path / "log.txt", environment) as child:
        until(lambda: child.returncode is not None)
    assert child.returncode == 0 and child.log_tail() == "orchid"


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path):
    script = (
        "import time; from dflash.online.child import Child\n"
        f"print(Child('x', ['sleep', '60'], {str(tmp_path / 'log.txt')!r}).pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(dflash.__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(parent.stdout.readline())
    until(lambda: Path(f"/proc/{child}/comm").read_text().strip() == "sleep")
    parent.kill()
    parent.wait()
    until(lambda: not runs(child), seconds=3)


def test_a_child_of_a_short_lived_thread_is_refused(tmp_path):
    problems = []

    def start() -> None:
        try:
            Child("x", ["sleep", "60"], tmp_path / "log.txt")
        except RuntimeError as error:
            problems.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(problems) == 1 and "main thread" in problems[0]
