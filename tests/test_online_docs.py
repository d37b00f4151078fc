"""docs/online.md: its commands are accepted as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from dflash.cli.main import main

TEXT = (Path(__file__).parents[1] / "docs" / "online.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[list[str]]:
    """The words of every command in the shell blocks of a section."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = "".join(re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines()]


@pytest.fixture(autouse=True)
def on_a_fitting_machine(monkeypatch):
    """What the machine of the test lacks is no fault of the command."""
    monkeypatch.setattr("dflash.online.serving.online_machine_complaints", lambda *_: [])
    monkeypatch.setattr("dflash.online.readiness.answers", lambda *_, **__: True)


def test_the_commands_for_one_node_are_accepted():
    trains = [words[1:] for words in commands("One node") if words[:2] == ["dflash", "train"]]
    assert len(trains) == 2
    for arguments in trains:
        assert main([*arguments, *(["--dry-run"] if "--dry-run" not in arguments else [])]) == 0


def test_the_commands_for_several_nodes_are_accepted(capsys):
    serving = [words[1:] for words in commands("More nodes") if words[0] == "dflash"]
    (training,) = (words for words in commands("More nodes") if words[0] == "torchrun")
    printed = ""
    assert len(serving) == 2
    for arguments in serving:
        assert main([*arguments, "--dry-run"]) == 0
        printed += capsys.readouterr().out
    named = next(word for word in training if word.startswith("online.servers="))
    ports = re.findall(r"sglang\.launch_server.*--host=(\S+) --port=(\d+)", printed)
    assert [f"http://{host}:{port}" for host, port in ports] == re.findall(r"http://[\d.]+:\d+", named)

    def option(name: str) -> int:
        return int(training[training.index(name) + 1])

    ranks = option("--nnodes") * option("--nproc-per-node")
    assert all(f"online.trainers={ranks}" in arguments for arguments in serving)
    arguments = training[training.index("dflash") + 1 :]
    assert main([*arguments, "--dry-run", "--world-size", str(ranks)]) == 0
