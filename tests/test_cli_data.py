"""`dflash data inspect`: what it counts, what it shows, and what it refuses."""

import json
import subprocess
import sys

import pytest
import yaml

from dflash.cli.main import main


def turns(user: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    records = [
        {"id": "first", "messages": turns("Hi", "Hello\x1b[31m")},
        {"id": "second", "messages": turns("More", "Bye " * 40)},
        {"id": "mute", "messages": turns("Hi", "")},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "broken\n" * 7, encoding="utf-8")
    return str(path)


@pytest.fixture
def inspect(tiny_target_folder, capsys):
    """Run the command with the tiny target; the exit code, what it printed, what it complained about."""

    def inspect(*arguments: str) -> tuple[int, str, str]:
        code = main(["data", "inspect", *arguments, "--target", tiny_target_folder])
        return code, *capsys.readouterr()

    return inspect


def test_counts_lengths_and_rejects_are_reported_with_reasons_and_lines(inspect, chats):
    code, out, _ = inspect(chats)
    assert code == 0
    assert "10: 2 usable, 8 left out" in out
    assert "7  not valid JSON (Expecting value): chats.jsonl:4, chats.jsonl:5" in out and "and 2 more" in out
    assert "1  fewer than 2 supervised tokens: chats.jsonl:3 (mute)" in out
    assert "length          min 33, " in out and " cut " not in out


def test_the_example_shows_the_mask_and_no_control_characters(inspect, chats):
    _, out, _ = inspect(chats)
    assert "<|im_start|>assistant\n⟦Hello\\x1b[31m<|im_end|>⟧\n" in out
    assert "\x1b" not in out


def test_on_a_terminal_the_mask_is_coloured_unless_colour_is_unwanted(inspect, chats, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = inspect(chats)
    assert "\x1b[32mHello\\x1b[31m<|im_end|>\x1b[0m" in out and "⟦" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = inspect(chats)
    assert "\x1b" not in out


def test_json_holds_the_same_numbers_every_reject_and_the_whole_example(inspect, chats):
    code, out, _ = inspect(chats, "--json", "--max-length", "60")
    report = json.loads(out)
    assert code == 0
    assert (report["used"], report["rejected"], report["truncated"], report["rows"]) == (2, 8, 1, 2)
    assert report["tokens"] == 60 + report["lengths"]["min"]
    assert 0 < report["supervised_share"] == report["supervised"] / report["tokens"] < 1
    assert [reject["line"] for reject in report["rejects"]] == [*range(3, 11)]
    runs = report["example"]["runs"]
    assert [run["supervised"] for run in runs] == [False, True, False]
    assert runs[1]["text"] == "Hello\x1b[31m<|im_end|>"


def test_a_config_brings_its_data_section_and_target(inspect, chats, tmp_path, tiny_target_folder, capsys):
    config = {
        "target": {"name": tiny_target_folder},
        "data": {"train": [chats], "max_length": 96, "packing": True, "validation_size": 1},
        "draft": {"target_layer_ids": [1, 3]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["data", "inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["target"], report["max_length"], report["truncated"]) == (tiny_target_folder, 96, 1)
    assert report["rows"] == 2 and report["row_fill"] == report["tokens"] / (2 * 96)
    options = ["data.packing=false", "--max-length", "200", "--limit", "1", "--json"]
    assert main(["data", "inspect", str(path), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["max_length"], report["used"], report["rejected"], report["row_fill"]) == (200, 1, 0, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl could not be read: No such file"),
        (["no/such/folder"], "'no/such/folder' does not exist: give a file, a folder"),
        (["{broken}"], "broken.jsonl holds no conversations"),
        (["{broken}", "--split", "test"], "files have no subsets and splits"),
        (["{broken}", "data.packing=true"], "'data.packing=true' changes a config"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["{broken}", "--target", "/no/such/target"], "'/no/such/target' does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path, tiny_target_folder, arguments, words):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("nothing\nof use\n", encoding="utf-8")
    arguments = [argument.format(broken=broken) for argument in arguments]
    target = [] if "--target" in arguments else ["--target", tiny_target_folder]
    assert main(["data", "inspect", *arguments, *target]) == 2
    out, complaint = capsys.readouterr()
    assert out == "" and words in complaint and complaint.count("\n") == 1


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom dflash.cli.main import main\n"
        "try: main(['data', 'inspect', '--help'])\n"
        "except SystemExit: print('HEAVY', [m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "usage: dflash data inspect" in result.stdout and "HEAVY []" in result.stdout
