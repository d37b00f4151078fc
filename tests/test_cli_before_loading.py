"""Cheap mistakes are found before anything is loaded: one sentence, exit code 2, and torch was never imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
from dflash.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print(code, [name for name in ("torch", "transformers", "datasets", "gradio") if name in sys.modules])
"""


def refused(*arguments: str, cwd: Path) -> str:
    """The one sentence that refuses a command, which must have imported nothing heavy and left nothing behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cwd / "hub")}
    before = sorted(cwd.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert result.stdout == "2 []\n", result.stdout + result.stderr
    assert result.stderr.startswith("dflash: ") and result.stderr.count("\n") == 1, result.stderr
    assert sorted(cwd.rglob("*")) == before
    return result.stderr


@pytest.fixture(scope="module")
def place(tiny_target, tiny_target_folder, tmp_path_factory) -> Path:
    """A folder with drafts for the tiny target (`draft`, blocks of 4) and for another one (`foreign`)."""
    folder = tmp_path_factory.mktemp("place")
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=2, block_size=4)
    DFlashDraft(config).save_pretrained(folder / "draft")
    config.num_target_layers, config.target_name = 36, "some-other-target"
    DFlashDraft(config).save_pretrained(folder / "foreign")
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text("{")
    (folder / "broken/model.safetensors").touch()
    (folder / "tiny").symlink_to(tiny_target_folder)
    return folder


WRONG = {
    "a draft that is not there": (["--draft", "/nope"], "'/nope' is no folder"),
    "a draft without weights": (["--draft", "tiny"], "names architectures"),
    "a draft that cannot be read": (["--draft", "broken"], "config.json could not be read"),
    "a draft of another target": (["--draft", "foreign"], "made for another target (some-other-target)"),
    "a block larger than the draft's": (["--draft", "draft", "--block-size", "5"], "choose from 2 to 4"),
    "a device that is none": (["--draft", "draft", "--device", "banana"], "'banana' is no device: choose auto, cpu"),
    "no draft shipped": ([], "No draft is shipped for target './tiny'"),
}


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize("case", WRONG)
def test_a_draft_a_block_or_a_device_that_cannot_be_is_refused_at_once(place, case, command):
    options, said = WRONG[case]
    assert said in refused(command, "--prompt", "x", "--target", "./tiny", *options, cwd=place)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("./nowhere", "'./nowhere' does not exist"),
        (" ", "name is empty"),
        ("draft/..", "holds no config.json"),
        ("someone/model", "neither a folder here nor in the local cache, and the Hugging Face hub cannot be reached"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "x"],
        ["check", "leak"],
        ["synthesize", "--self-instruct", "1", "--out", "out.jsonl"],
    ],
    ids=lambda words: words[0],
)
def test_a_target_that_cannot_be_had_is_refused_at_once(place, command, target, said):
    assert said in refused(*command, "--target", target, cwd=place)


@pytest.mark.parametrize("gate", ["leak", "layers"])
def test_a_gate_looks_at_its_draft_first(place, gate):
    assert "'/nope' is no folder" in refused("check", gate, "--target", "./tiny", "--draft", "/nope", cwd=place)


def test_a_prompt_file_is_no_training_data_and_is_sent_where_it_belongs(place):
    (place / "prompts.jsonl").write_text(json.dumps({"id": "a", "turns": ["What is 6 times 7?"]}) + "\n")
    said = refused("data", "inspect", "prompts.jsonl", cwd=place)
    assert "prompts.jsonl holds prompts" in said and "dflash evaluate --prompts prompts.jsonl" in said
    assert "dflash synthesize --prompts prompts.jsonl --out FILE" in said
    assert "dflash regenerate prompts.jsonl --server URL --out FILE" in said


@pytest.mark.parametrize("command", [["evaluate"], ["synthesize", "--out", "out.jsonl"]], ids=lambda words: words[0])
def test_conversations_are_no_prompts_and_are_sent_where_they_belong(place, command):
    (place / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    said = refused(*command, "--prompts", "talk.jsonl", cwd=place)
    assert "talk.jsonl holds conversations, not prompts" in said and "data.train=[talk.jsonl]" in said


def test_conversations_given_as_a_config_are_sent_where_they_belong(place):
    (place / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": []}\n')
    said = refused("train", "talk.jsonl", "--dry-run", cwd=place)
    assert "'talk.jsonl' holds JSON lines of conversations" in said and "data.train=[talk.jsonl]" in said


def test_a_run_given_as_a_draft_is_told_where_its_draft_is(tmp_path):
    draft = Path("mine/checkpoints/step_0000020/draft")
    (tmp_path / draft).mkdir(parents=True)
    (tmp_path / "mine/checkpoints/step_0000010/draft").mkdir(parents=True)
    said = refused("generate", "--prompt", "x", "--draft", "mine", cwd=tmp_path)
    assert f"holds no config.json: give {draft}, a draft of this run." in said
