"""Bad options are one sentence and exit code 2; nothing is open to other machines without a password."""

import socket
import sys
from pathlib import Path

import httpx
import pytest
from waiting import until
from workbench_server import running_workbench

from workbench import launch
from workbench.jobs import Jobs
from workbench.launch import AUTH_VARIABLE, check_host, main, parse_auth


@pytest.fixture
def taken_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_in_use_is_one_sentence_and_exit_code_2(taken_port, capsys):
    assert main(["--no-browser", "--port", str(taken_port)]) == 2
    error = capsys.readouterr().err
    assert str(taken_port) in error and "--port" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--port", "70000"], "70000"),
        (["--host", "0.0.0.0"], "--auth"),
        (["--host", "no.such.host.invalid", "--auth", "a:b"], "no.such.host.invalid"),
        (["--auth", "nopassword"], "USER:PASSWORD"),
        (["--target", " "], "target's name is empty"),
        (["--target", "./nowhere"], "'./nowhere' does not exist"),
        (["--port", "abc"], "'abc' is not a whole number"),
        (["--device", "abacus"], "'abacus'"),
        (["--draft", "/nope"], "'/nope' is no folder"),
        (["--runs", f"{__file__}/runs"], "is a file"),
    ],
)
def test_bad_options_are_named(options, named, capsys):
    try:
        code = main(["--no-browser", *options])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code == 2 and named in said
    assert said.startswith("app.py: ") and said.count("\n") == 1


def test_help_shows_only_defaults_that_say_something(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "(default: 7860)" in shown
    assert "(default: )" not in shown and "True" not in shown and "None" not in shown


def test_credentials_may_come_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv(AUTH_VARIABLE, "broken")
    assert main(["--no-browser"]) == 2
    assert AUTH_VARIABLE in capsys.readouterr().err


def test_nothing_that_the_workbench_starts_is_told_the_password(monkeypatch, tmp_path):
    monkeypatch.setenv(AUTH_VARIABLE, "me:secret")
    told = []

    def serves(options, auth):
        show = [sys.executable, "-c", "import os; print(sorted(os.environ))"]
        Jobs(tmp_path).start(show, kind="train", name="a")
        told.append(auth)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "serve", serves)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["--no-browser", "--port", str(port), "--runs", str(tmp_path)]) == 130
    until(lambda: not Jobs(tmp_path).get("a").active, 60)
    assert told == [("me", "secret")]
    names = Jobs(tmp_path).get("a").log_tail()
    assert "PATH" in names and AUTH_VARIABLE not in names


def test_files_that_visitors_brought_are_not_kept_for_ever(tiny_target_folder, tmp_path):
    with running_workbench(tiny_target_folder, "", str(tmp_path)) as address:
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("prompts.jsonl", b"{}")})
        (copy,) = map(Path, answer.json())
        assert copy.is_file()
    assert not copy.exists()


def test_passwords_may_hold_colons():
    assert parse_auth("me:a:b") == ("me", "a:b")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_this_machine_needs_no_password(host):
    check_host(host, None)
