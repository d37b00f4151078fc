"""The `dflash` command: quick help, one sentence and exit code 2 for bad input, results for programs."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dflash.cli.main import build_parser, main
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft

COMMANDS = ("generate", "compare", "evaluate", "synthesize", "train", "doctor")


@pytest.fixture(scope="module")
def tiny_draft_folder(tiny_target, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-draft")
    draft = DFlashDraft(DFlashConfig.for_target(tiny_target, num_hidden_layers=2, num_features=3, block_size=4))
    draft.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def foreign_draft_folder(tiny_target, tmp_path_factory) -> str:
    """A draft for a target of another depth and vocabulary."""
    folder = tmp_path_factory.mktemp("foreign-draft")
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=2, block_size=4)
    config.num_target_layers, config.target_name = 36, "some-other-target"
    DFlashDraft(config).save_pretrained(folder)
    return str(folder)


def dflash(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The command as a person runs it, in a process of its own."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    return subprocess.run(
        [sys.executable, "-m", "dflash", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def assert_one_sentence(result: subprocess.CompletedProcess, *said: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("dflash: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults_and_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom dflash.cli.main import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: print('HEAVY', [m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in result.stdout
    assert "usage: dflash" in result.stdout
    if command != "doctor":
        assert "(default: " in result.stdout
    assert "None" not in result.stdout


# Refused before anything heavy is imported.
QUICK_MISTAKES = {
    "no command": ([], ["COMMAND"]),
    "unknown command": (["fly"], ["fly", "generate"]),
    "empty prompt": (["generate", "--prompt", "  "], ["--prompt", "empty"]),
    "no prompt": (["generate"], ["--prompt"]),
    "unknown dtype": (["generate", "--prompt", "x", "--dtype", "int3"], ["int3", "bfloat16", "float32"]),
    "block of one": (["generate", "--prompt", "x", "--block-size", "1"], ["--block-size", "'1'"]),
    "no tokens": (["generate", "--prompt", "x", "--max-new-tokens", "0"], ["--max-new-tokens", "'0'"]),
    "half a token": (["generate", "--prompt", "x", "--max-new-tokens", "1.5"], ["'1.5'", "whole number"]),
    "cold": (["generate", "--prompt", "x", "--temperature", "-1"], ["--temperature", "'-1'"]),
    "hot": (["generate", "--prompt", "x", "--temperature", "nan"], ["--temperature", "'nan'"]),
    "unknown rule": (["generate", "--prompt", "x", "--rule", "luck"], ["luck", "rejection"]),
    "rule without sampling": (["generate", "--prompt", "x", "--rule", "rejection"], ["--rule", "temperature 0"]),
    "seed without sampling": (["generate", "--prompt", "x", "--seed", "3"], ["--seed", "temperature 0"]),
    "unknown option": (["generate", "--prompt", "x", "--speed", "fast"], ["--speed"]),
    "nothing to answer": (["synthesize", "--out", "out.jsonl"], ["--prompts", "--dataset", "--self-instruct"]),
    "no config": (["train"], ["smollm2-135m-cpu"]),
    "missing config": (["train", "nowhere.yaml"], ["nowhere.yaml", "neither a file nor a shipped", "smollm2-135m-cpu"]),
    "unknown setting": (["train", "smollm2-135m-cpu", "run.stpes=3", "--dry-run"], ["run.stpes", "run.max_steps"]),
    "bad override": (["train", "smollm2-135m-cpu", "steps"], ["steps", "section.key=value"]),
    "missing data": (["train", "smollm2-135m-cpu", "data.train=[nowhere.jsonl]"], ["nowhere.jsonl", "synthesize"]),
    "run name with a path": (["train", "smollm2-135m-cpu", "--name", "../x"], ["../x", "--runs"]),
    "empty run name": (["train", "smollm2-135m-cpu", "--name", ""], ["--name", "empty"]),
    "name of a resumed run": (["train", "--resume", "nowhere", "--name", "x"], ["--name", "leave it out"]),
    "folder of a resumed run": (["train", "--resume", "nowhere", "--runs", "runs"], ["--runs", "leave it out"]),
    "unknown option of train": (["train", "smollm2-135m-cpu", "--fast", "run.seed=1"], ["--fast", "dflash train --help"]),
    "no run to resume": (["train", "--resume", "nowhere"], ["nowhere", "config.yaml"]),
    "missing prompts": (["evaluate", "--prompts", "nowhere.jsonl"], ["nowhere.jsonl", "No such file"]),
    "missing prompts to answer": (
        ["synthesize", "--out", "out.jsonl", "--prompts", "nowhere.jsonl"],
        ["nowhere.jsonl", "No such file"],
    ),
}


@pytest.mark.parametrize("mistake", QUICK_MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake, tmp_path):
    arguments, said = QUICK_MISTAKES[mistake]
    assert_one_sentence(dflash(*arguments, cwd=tmp_path), *said)
    assert list(tmp_path.iterdir()) == [], "a refused command must leave nothing behind"


@pytest.mark.parametrize("command", ["evaluate", "synthesize"])
def test_a_bad_line_of_a_prompt_file_is_named_by_number_and_reason(command, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "turns": ["good"]}\n{"id": "b", "turns": []}\n')
    out = ["--out", str(tmp_path / "out.jsonl")] if command == "synthesize" else []
    result = dflash(command, "--prompts", str(prompts), *out)
    assert_one_sentence(result, str(prompts), "line 2", "turns")


@pytest.mark.parametrize("command", ["evaluate", "synthesize"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(command, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "turns": ["good"]}\n')
    option = "--out" if command == "synthesize" else "--json"
    result = dflash(command, "--prompts", str(prompts), option, str(prompts / "below-a-file.jsonl"))
    assert_one_sentence(result, "below-a-file.jsonl", "cannot be written")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "no/such-model"], ["no/such-model", "Hugging Face id"]),
        (["--target", "./no-such-folder"], ["./no-such-folder", "does not exist"]),
        (["--target", "TINY", "--draft", "./nowhere"], ["./nowhere", "no folder"]),
        (["--target", "TINY"], ["No draft is shipped", "dflash train"]),
        (["--target", "TINY", "--draft", "FOREIGN"], ["made for another target", "some-other-target"]),
        (["--target", "TINY", "--draft", "DRAFT", "--prompt", "x" * 600], ["512"]),
        (["--target", "TINY", "--draft", "DRAFT", "--max-new-tokens", "512"], ["512"]),
        (["--target", "TINY", "--draft", "DRAFT", "--device", "abacus"], ["abacus", "cpu"]),
    ],
)
def test_a_mistake_that_only_the_models_reveal_is_one_sentence_too(
    options, said, tiny_target_folder, tiny_draft_folder, foreign_draft_folder
):
    folders = {"TINY": tiny_target_folder, "DRAFT": tiny_draft_folder, "FOREIGN": foreign_draft_folder}
    arguments = [folders.get(option, option) for option in options]
    if "--prompt" not in arguments:
        arguments += ["--prompt", "Hello"]
    assert_one_sentence(dflash("generate", *arguments), *said)


@pytest.fixture
def tiny_models(tiny_target_folder, tiny_draft_folder) -> list[str]:
    return ["--target", tiny_target_folder, "--draft", tiny_draft_folder, "--threads", "1", "--device", "cpu"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_generate_prints_one_json_object_whose_tokens_agree(tiny_models, capsys, dtype):
    arguments = ["generate", "--prompt", "Hello", "--max-new-tokens", "24", "--dtype", dtype, "--json", *tiny_models]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["identical"] is True
    assert record["target_tokens"] == record["draft_tokens"]
    assert [t for step in record["steps"] for t in step["emitted"]] == record["draft_tokens"]
    assert 1 <= len(record["draft_tokens"]) <= 24
    assert 1 <= record["tau"] <= 4
    assert min(record["target_tok_s"], record["draft_tok_s"], record["speedup"]) > 0
    assert isinstance(record["text"], str)


def test_generate_says_nothing_about_identity_when_it_samples(tiny_models, capsys):
    sampled = ["generate", "--prompt", "Hello", "--temperature", "1", "--json", "--max-new-tokens", "8", *tiny_models]
    assert main(sampled) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is None


def test_generate_in_words_shows_the_text_and_the_comparison(tiny_models, capsys):
    assert main(["generate", "--prompt", "Hello", "--max-new-tokens", "8", *tiny_models]) == 0
    shown = capsys.readouterr().out
    assert "tok/s" in shown
    assert "tau" in shown
    assert "identical" in shown


@pytest.fixture
def prompt_file(tmp_path):
    def write(name: str, count: int) -> str:
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": f"q{i}", "category": name, "turns": [f"question {i}", "and then?"]} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_evaluate_pools_by_set_and_over_all_with_the_same_ids_in_both(tiny_models, prompt_file, tmp_path, capsys):
    out = tmp_path / "results" / "out.json"
    arguments = [
        "evaluate",
        "--prompts",
        prompt_file("math", 3),
        "--prompts",
        prompt_file("code", 2),
        "--json",
        str(out),
    ]
    assert main([*arguments, "--limit", "2", "--max-new-tokens", "8", "--dtype", "float32", *tiny_models]) == 0
    report = json.loads(out.read_text())
    assert list(report["by_set"]) == ["math", "code"]
    assert [(r["set"], r["id"]) for r in report["results"]] == [
        ("math", "q0"), ("math", "q1"), ("code", "q0"), ("code", "q1"),
    ]  # fmt: skip
    pooled = report["pooled"]
    assert (pooled["prompts"], pooled["identical"], pooled["checked"]) == (4, 4, 4)
    assert pooled["steps"] == sum(r["steps"] for r in report["results"])
    assert len(pooled["acceptance"]["cumulative"]) == len(pooled["acceptance"]["conditional"]) == 3
    assert {"hits", "total", "value"} <= set(pooled["acceptance"]["conditional"][0])
    assert pooled["speedup"] > 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[:4]] == ["set", "math", "code", "all"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.json"]


def test_evaluate_exits_with_1_when_an_output_differs(tiny_models, prompt_file, monkeypatch, capsys):
    from dflash.evaluation import benchmark

    real = benchmark.compare

    def tampered(*args, **options):
        compared = real(*args, **options)
        return type(compared)(compared.target, compared.draft, compared.reference, False, 3)

    monkeypatch.setattr(benchmark, "compare", tampered)
    assert main(["evaluate", "--prompts", prompt_file("math", 1), "--max-new-tokens", "4", *tiny_models]) == 1
    assert "0/1" in capsys.readouterr().out


def test_an_interrupted_evaluation_goes_on_with_the_next_prompt(
    tiny_models, prompt_file, tmp_path, monkeypatch, capsys
):
    from dflash.evaluation import benchmark

    out, decoded, real = tmp_path / "out.json", [], benchmark.compare

    def counted(engine, ids, *args, **options):
        if len(decoded) == 2:
            decoded.append("interrupted")
            raise KeyboardInterrupt
        decoded.append(ids)
        return real(engine, ids, *args, **options)

    monkeypatch.setattr(benchmark, "compare", counted)
    arguments = [
        "evaluate",
        "--prompts",
        prompt_file("math", 3),
        "--json",
        str(out),
        "--max-new-tokens",
        "4",
        *tiny_models,
    ]
    assert main(arguments) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert main(arguments) == 0
    assert len(decoded) == 4, "two before the interruption, the interruption, and only the third prompt after it"
    assert json.loads(out.read_text())["pooled"]["prompts"] == 3


def test_a_finished_evaluation_is_replaced_only_when_asked_to(tiny_models, prompt_file, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["evaluate", "--prompts", prompt_file("math", 1), "--json", str(out), *tiny_models]
    assert main([*arguments, "--max-new-tokens", "4"]) == 0
    before = out.read_bytes()
    assert main([*arguments, "--max-new-tokens", "6"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*arguments, "--max-new-tokens", "6", "--overwrite"]) == 0
    assert json.loads(out.read_text())["settings"]["max_new_tokens"] == 6


def test_several_drafts_are_measured_in_one_go_with_a_file_each(
    tiny_models, tiny_target, prompt_file, tmp_path, capsys
):
    checkpoint = tmp_path / "run-1" / "checkpoints" / "step_0000002"
    other = DFlashDraft(DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=2, block_size=3))
    other.save_pretrained(checkpoint / "draft")
    out = tmp_path / "results"
    arguments = ["evaluate", "--prompts", prompt_file("math", 1), "--json", str(out), "--max-new-tokens", "4"]
    assert main([*arguments, "--draft", str(checkpoint / "draft"), *tiny_models]) == 0
    names = {path.name: json.loads(path.read_text())["draft_name"] for path in out.iterdir()}
    assert names["run-1-step_0000002.json"] == "run-1/step_0000002" and len(names) == 2
    assert {json.loads(path.read_text())["settings"]["block_size"] for path in out.iterdir()} == {3, 4}
    assert "draft run-1/step_0000002" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompts", "twice.jsonl"], ["'a'", "set 'twice'"]),
        (["--prompts", "good.jsonl", "--draft", "nowhere"], ["'nowhere'", "no folder"]),
        (["--prompts", "good.jsonl", "--json", "finished.json"], ["finished.json", "--overwrite"]),
    ],
)
def test_evaluate_refuses_before_it_imports_torch(options, said, tmp_path):
    line = '{"id": "a", "turns": ["good"]}\n'
    (tmp_path / "good.jsonl").write_text(line)
    (tmp_path / "twice.jsonl").write_text(2 * line)
    (tmp_path / "finished.json").write_text("{}")
    code = (
        "import sys\nfrom dflash.cli.main import main\n"
        f"code = main(['evaluate', *{options!r}])\n"
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert_one_sentence(result, *said)


@pytest.mark.parametrize("command", [["evaluate"], ["synthesize", "--out", "out.jsonl"]], ids=lambda words: words[0])
def test_prompt_files_are_taken_as_a_shell_lists_them_and_one_by_one(command):
    listed = build_parser().parse_args([*command, "--prompts", "a.jsonl", "b.jsonl", "--limit", "2"])
    mixed = build_parser().parse_args([*command, "--prompts", "a.jsonl", "--limit", "2", "--prompts", "b.jsonl"])
    assert listed.prompts == mixed.prompts == [Path("a.jsonl"), Path("b.jsonl")]
    assert listed.limit == mixed.limit == 2


def test_two_sets_of_one_name_are_refused(prompt_file, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = Path(prompt_file("math", 1)).rename(tmp_path / "other" / "math.jsonl")
    assert main(["evaluate", "--prompts", prompt_file("math", 1), "--prompts", str(other)]) == 2
    assert "'math'" in capsys.readouterr().err


def test_synthesize_answers_a_prompt_file_and_goes_on_where_it_stopped(tiny_target_folder, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "new" / "out.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "turns": [f"question {i}"]}) + "\n" for i in range(3)))
    arguments = ["synthesize", "--prompts", str(prompts), "--out", str(out), "--target", tiny_target_folder]
    arguments += ["--max-new-tokens", "4", "--json", "--device", "cpu", "--threads", "1"]
    assert main([*arguments, "--limit", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert (first["written"], first["resumed"]) == (2, 0)
    assert (second["written"], second["resumed"]) == (1, 2)
    assert len(out.read_text().splitlines()) == 3


def test_synthesize_answers_every_file_whose_prompts_have_no_ids(tiny_target_folder, tmp_path, capsys):
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for file in files:
        rows = [{"turns": [f"a question of {file.stem}"]}, {"id": f"{file.stem}-own", "turns": ["another"]}]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    arguments = ["synthesize", "--out", str(out), "--target", tiny_target_folder, "--max-new-tokens", "2"]
    arguments += ["--device", "cpu", "--threads", "1"]
    assert main([*arguments, "--prompts", str(files[0]), "--prompts", str(files[1])]) == 0
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert sorted(ids) == ["first-1", "first-own", "second-1", "second-own"]
    capsys.readouterr()
    assert main([*arguments, "--prompts", str(files[0]), "--prompts", str(files[0])]) == 2
    assert "'first-1'" in capsys.readouterr().err


def test_doctor_prints_json_for_programs_and_lines_for_people(capsys):
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["usable"] else 1)
    assert main(["doctor"]) == code
    assert "torch" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_that_names_the_file_and_what_is_kept(
    tiny_models, prompt_file, tmp_path, monkeypatch, capsys
):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    prompts, out = prompt_file("math", 1), tmp_path / "out.jsonl"
    target = tiny_models[:2]
    monkeypatch.setattr("os.fsync", full)
    assert main(["synthesize", "--prompts", prompts, "--out", str(out), "--max-new-tokens", "2", *target]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # behind the progress bar
    assert said.startswith(f"dflash: {out}: No space left on device; every finished batch is kept")
    journal = tmp_path / "out.json.partial.jsonl"
    arguments = ["evaluate", "--prompts", prompts, "--json", str(tmp_path / "out.json"), "--max-new-tokens", "2"]
    assert main([*arguments, *tiny_models]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"dflash: {journal}: No space left on device")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_output_that_nobody_can_take_is_one_sentence_too():
    root = str(Path(__file__).resolve().parent.parent)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "dflash", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=root
        )
    assert result.returncode == 2
    assert result.stderr == "dflash: No space left on device; nothing was changed.\n"


def test_an_interruption_exits_with_130_and_says_what_is_kept(monkeypatch, capsys):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dflash.doctor.examine", interrupted)
    assert main(["doctor"]) == 130
    assert "interrupted; nothing was changed." in capsys.readouterr().err
