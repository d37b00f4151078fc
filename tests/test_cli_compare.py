"""`dflash compare`: every way on one prompt, for programs and for people."""

import json
import statistics

import pytest
from workbench_server import save_tiny_draft

from dflash.cli.main import main
from dflash.decoding.ways import Lineup


@pytest.fixture(scope="module")
def command(tiny_target, tiny_target_folder, tmp_path_factory) -> list[str]:
    draft = save_tiny_draft(tiny_target, tmp_path_factory.mktemp("compare") / "tiny-draft")
    machine = ["--target", tiny_target_folder, "--threads", "1", "--device", "cpu"]
    return ["compare", "--prompt", "Count.", "--max-new-tokens", "12", "--draft", draft, *machine]


def test_rows_are_medians_over_rounds_with_a_verdict_for_each_text(command, capsys, tiny_target_folder):
    assert main([*command, "--rounds", "3", "--assistant", tiny_target_folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert [row["kind"] for row in rows] == ["target", "draft", "plain", "prompt_lookup", "assistant"]
    assert all(row["tok_s"] == statistics.median(row["tok_s_rounds"]) for row in rows)
    assert all(row["rounds"] == len(row["speedup_rounds"]) == 3 and row["tokens"] == 12 for row in rows)
    assert rows[0]["speedup"] == 1.0 and rows[1]["identical"] is True
    assert rows[1]["way"]["draft"] == command[command.index("--draft") + 1]
    assert found["prompt"] == "Count." and found["machine"]["dtype"] == "bfloat16"


def test_a_row_for_each_way_is_printed_for_people(command, capsys):
    assert main([*command, "--rounds", "1", "--lookup-tokens", "0", "--block-size", "3"]) == 0
    header, alone, drafted = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "way" and alone.startswith("Target alone")
    assert drafted.startswith("DFlash tiny-draft, block 3") and "identical to plain decoding" in drafted


def test_sampled_texts_are_not_compared(command, capsys):
    sampled = ["--temperature", "1", "--seed", "3", "--rule", "rejection", "--rounds", "1", "--json"]
    assert main([*command, *sampled]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["identical"] for row in rows} == {None} and rows[1]["way"]["seed"] == 3


def test_a_draft_with_another_text_ends_with_one(command, capsys, monkeypatch):
    real = Lineup._in_block_shape
    monkeypatch.setattr(Lineup, "_in_block_shape", lambda *args: (*real(*args)[:-1], 0))
    assert main([*command, "--rounds", "1"]) == 1
    assert "differs from plain decoding in the block's shape at token 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rounds", "10"], "10 rounds are not possible: choose 1 to 9."),
        (["--lookup-tokens", "65"], "lookup_tokens 65 must lie between 1 and 64."),
        (["--assistant", "./nowhere"], "'./nowhere' does not exist"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(command, options, sentence, capsys):
    assert main([*command, *options]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""
