"""`dflash difference` compares two result files as the library does, and refuses what cannot be compared."""

import json

import pytest
from acceptance_results import PROMPTS, write_result

from dflash.cli.main import main
from dflash.evaluation.breakdown import paired
from dflash.evaluation.report_file import read_report


@pytest.fixture(scope="module")
def files(tiny_target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    first = write_result(tiny_target, folder / "first.json", right=0)
    return str(first), str(write_result(tiny_target, folder / "second.json", right=3, prompts=PROMPTS[:2]))


def test_two_results_are_compared_on_the_prompts_they_share(files, capsys):
    expected = paired(*map(read_report, files))
    assert main(["difference", *files]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0:2] for line in shown[1:3]] == [["first", "a"], ["first", "b"]] and len(shown) == 4
    assert shown[3].startswith(f"tau, second less first: {expected.difference.value:+.2f}, 95 % interval ")
    assert f"{expected.better} better, {expected.equal} equal, {expected.worse} worse" in shown[3]


def test_as_json_it_is_what_the_endpoint_answers(files, capsys):
    assert main(["difference", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == paired(*map(read_report, files)).to_dict()


def test_results_of_other_settings_are_refused_in_a_sentence(files, tmp_path, capsys):
    report = json.loads(open(files[1]).read())
    report["settings"]["temperature"] = 0.7
    (tmp_path / "warm.json").write_text(json.dumps(report))
    assert main(["difference", files[0], str(tmp_path / "warm.json")]) == 2
    assert "differ in temperature (0.0 and 0.7)" in capsys.readouterr().err
