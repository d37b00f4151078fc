"""Bad options are one sentence and exit code 2; nothing is open to other machines without a password."""

import socket

import pytest

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


def test_passwords_may_hold_colons():
    assert parse_auth("me:a:b") == ("me", "a:b")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_this_machine_needs_no_password(host):
    check_host(host, None)
