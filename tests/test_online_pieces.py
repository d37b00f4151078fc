"""Small parts of the launcher: signals counted, logs followed, ranks tied, tokenizers compared, keys told apart."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import waiting
from byte_tokenizer import byte_tokenizer

import dflash
from dflash.errors import UserError
from dflash.online.follow import Follower, errors_into
from dflash.online.generation import new_generation, rank_prefix, run_id, run_prefix
from dflash.online.processes import ask_to_stop, children
from dflash.online.rank import is_launched, rank_log
from dflash.online.stop_requests import StopRequests
from dflash.online.tokenizer_proof import PROBE, probe_of, require_same_tokenizer
from dflash.online.trainers import Trainers

until = partial(waiting.until, seconds=30)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(dflash.__file__).parents[1])}


def test_signals_are_counted_and_ignored_ones_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with StopRequests() as stops:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stops.count == 0
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert stops.count == 2
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, interrupt)


def test_a_log_is_followed_from_now_on_by_whole_lines_without_mooncakes_own(tmp_path):
    log, shown = tmp_path / "rank-0.log", io.StringIO()
    log.write_text("of an earlier sitting\n")
    follower = Follower(log, shown)
    with open(log, "a") as file:
        file.write("step 1\nWARNING: Logging before InitGoogleLogging() is written to STDERR\n")
        file.write("E1123 17:47:51.868583   620 transfer_metadata.cpp:1098] Local segment descriptor not found\nste")
        file.flush()
        follower.show()
        assert shown.getvalue() == "step 1\n"
        file.write("p 2\nhalf a line")
    follower.show()
    follower.show(rest=True)
    assert shown.getvalue() == "step 1\nstep 2\nhalf a line"


def test_a_line_of_ten_megabytes_is_followed_without_being_read_again_and_again(tmp_path):
    log, shown = tmp_path / "rank-0.log", io.StringIO()
    follower = Follower(log, shown)
    log.write_bytes(b"x" * (10 << 20) + b"\nstep 1\n")
    follower.show()
    assert shown.getvalue().endswith("x\nstep 1\n") and len(shown.getvalue()) == log.stat().st_size
    with open(log, "a") as file:
        file.write("y" * (3 << 20))  # not ended: all but the last piece of it is shown
    follower.show()
    assert log.stat().st_size - follower._place < 2 << 20


def test_a_log_is_followed_on_when_nobody_reads_what_is_shown(tmp_path):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    follower = Follower(tmp_path / "rank-0.log", Gone())
    (tmp_path / "rank-0.log").write_text("step 1\n")
    follower.show()
    assert follower._place == len("step 1\n")


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path):
    shown = io.StringIO()
    follower = Follower(tmp_path / "rank-0.log", shown)
    follower.show()
    (tmp_path / "rank-0.log").write_text("step 1\n")
    follower.show()
    assert shown.getvalue() == "step 1\n"


def test_ranks_that_start_after_the_request_are_asked_to_stop_as_well_and_each_once(tmp_path, monkeypatch):
    rank = "trap 'echo asked' TERM; touch ready; while [ ! -e go ]; do sleep 0.05; done; exit 7"
    torchrun = ["sh", "-c", 'cd "$1"; while [ ! -e start ]; do sleep 0.05; done; sh -c "$0" & wait $!', rank]
    monkeypatch.setattr("dflash.online.trainers.trainer_command", lambda ranks, arguments: [*torchrun, str(tmp_path)])
    nowhere = SimpleNamespace(environment=dict)
    trainers = Trainers(SimpleNamespace(ranks=1, endpoints=nowhere, trainer_gpus=()), tmp_path)
    trainers.start([])
    try:
        trainers.ask_to_stop()  # as yet there is none
        (tmp_path / "start").touch()
        until((tmp_path / "ready").exists)
        for _ in range(3):
            trainers.ask_to_stop()
            time.sleep(0.2)
        (tmp_path / "go").touch()
        until(lambda: trainers.returncode is not None)
    finally:
        trainers.stop()
    assert trainers.returncode == 7
    assert (tmp_path / "torchrun.log").read_text() == "asked\n"


def test_what_a_library_writes_to_stderr_goes_to_the_log_and_what_follows_does_not(tmp_path, capfd):
    with errors_into(tmp_path / "log"):
        os.write(2, b"from C++\n")
    os.write(2, b"afterwards\n")
    assert (tmp_path / "log").read_text() == "from C++\n"
    assert capfd.readouterr().err == "afterwards\n"


def test_a_rank_ends_with_the_process_that_started_it_and_writes_its_own_log(tmp_path):
    rank = (
        "import os, time; from dflash.online.rank import enter_rank; enter_rank()\n"
        "print('pid', os.getpid(), flush=True); os.system('echo from a child'); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        "variables = {**os.environ, 'DFLASH_TETHER': str(os.getpid())}\n"
        f"subprocess.Popen([sys.executable, '-c', {rank!r}], env=variables, start_new_session=True); time.sleep(60)"
    )
    variables = ENVIRONMENT | {"DFLASH_LOGS": str(tmp_path), "RANK": "3"}
    process = subprocess.Popen([sys.executable, "-c", parent], env=variables)
    try:
        log = rank_log(tmp_path, 3)
        until(lambda: log.exists() and "from a child" in log.read_text())
        pid = int(log.read_text().split()[1])
        assert children(process.pid) == [pid]
        process.kill()
        process.wait()
        until(lambda: not running(pid))
    finally:
        process.kill()
    assert is_launched(variables) and not is_launched({})


def test_a_rank_whose_parent_has_gone_does_not_start(tmp_path):
    code = "from dflash.online.rank import enter_rank; enter_rank(); print('went on')"
    variables = ENVIRONMENT | {"DFLASH_LOGS": str(tmp_path), "RANK": "0", "DFLASH_TETHER": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode and "went on" not in done.stdout and "parent ended first" in done.stderr


def test_asking_processes_that_are_gone_to_stop_does_no_harm():
    process = subprocess.Popen(["sleep", "60"])
    ask_to_stop([process.pid])
    assert process.wait(10) == -signal.SIGTERM
    ask_to_stop([process.pid])


@pytest.fixture
def tokenizing_server():
    """A server whose /tokenize is that of the byte tokenizer; `server.change` alters what it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            tokens = [server.tokenizer.encode(text, add_special_tokens=False) for text in request["prompt"]]
            payload = json.dumps(server.change({"tokens": tokens})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.change, server.tokenizer = lambda answer: answer, byte_tokenizer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_with_another_tokenizer_is_refused_with_both_hashes(tokenizing_server):
    url = f"http://127.0.0.1:{tokenizing_server.server_port}"

    require_same_tokenizer(url, tokenizing_server.tokenizer)
    tokenizing_server.change = lambda answer: {"tokens": [tokens[:-1] for tokens in answer["tokens"]]}
    with pytest.raises(UserError, match=r"another tokenizer .* \(hash \w{12} instead of \w{12}; it reads"):
        require_same_tokenizer(url, tokenizing_server.tokenizer)
    tokenizing_server.change = lambda answer: {"detail": "no"}
    with pytest.raises(UserError, match="does not tokenize"):
        require_same_tokenizer(url, tokenizing_server.tokenizer)


@pytest.mark.parametrize("add", [{"additional_special_tokens": ["<|start_header_id|>"]}, "Blockdiffusion"])
def test_a_tokenizer_with_one_token_more_is_another_one(tokenizing_server, add):
    url, ours = f"http://127.0.0.1:{tokenizing_server.server_port}", byte_tokenizer()
    ours.add_special_tokens(add) if isinstance(add, dict) else ours.add_tokens([add])
    with pytest.raises(UserError, match="it reads 'one(<.start_header_id.>|Blockdiffusion)two' differently"):
        require_same_tokenizer(url, ours)
    tokenizing_server.tokenizer = ours
    require_same_tokenizer(url, ours)


def test_of_thousands_of_reserved_tokens_the_special_ones_are_compared_first():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<reserved {n}>" for n in range(3000)])
    probe = probe_of(tokenizer)
    assert len(probe) == len(PROBE) + 1024
    assert {"one<|im_end|>two", "one<|im_start|>two", "one<|mask|>two"} <= set(probe)


def test_keys_of_a_run_begin_alike_whatever_the_sitting_and_rank_and_unlike_any_others(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine = run_id(tmp_path / "a")
    assert run_id(tmp_path / "a") == mine != run_id(tmp_path / "b")
    first, second = new_generation(), new_generation()
    assert first != second
    for generation in (first, second):
        for rank in range(2):
            key = rank_prefix(mine, generation, rank)
            assert key.startswith(run_prefix(tmp_path / "a")) and not key.startswith(run_prefix(tmp_path / "b"))
    assert not rank_prefix(mine, first, 11).startswith(rank_prefix(mine, first, 1))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
