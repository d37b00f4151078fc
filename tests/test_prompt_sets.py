"""Prompt files become sets whose every prompt has a category and a language."""

import json
import subprocess
import sys

import pytest

from dflash.errors import UserError
from dflash.evaluation.prompt_sets import read_sets, script_of


@pytest.fixture
def prompt_file(tmp_path):
    def write(name, *records):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return path

    return write


def test_category_and_language_are_the_files_own_where_given_and_derived_otherwise(prompt_file):
    path = prompt_file(
        "mine.jsonl",
        {"id": "a", "category": "math", "language": "de", "turns": ["Was ist 6 mal 7?"]},
        {"id": "b", "turns": ["Что такое компилятор (compiler)?"]},
    )
    first, second = read_sets([path])
    assert (first.set, first.category, first.language) == ("mine", "math", "de")
    assert (second.set, second.category, second.language) == ("mine", "mine", "Cyrillic script")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Grüße aus Köln", "Latin script"),
        ("日本語のテキストです", "CJK script"),
        ("한국어", "CJK script"),
        ("مرحبا بالعالم", "Arabic script"),
        ("12 + 30 = ?", "no letters"),
    ],
)
def test_the_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


def test_two_prompts_of_one_set_may_not_share_an_id_but_two_sets_may(prompt_file):
    first = prompt_file("first.jsonl", {"id": "a", "turns": ["one"]})
    second = prompt_file("second.jsonl", {"id": "a", "turns": ["one"]})
    assert len(read_sets([first, second])) == 2
    twice = prompt_file("twice.jsonl", {"id": "a", "turns": ["one"]}, {"id": "a", "turns": ["two"]})
    with pytest.raises(UserError, match="set 'twice' have the id 'a'"):
        read_sets([twice])


def test_reading_prompt_sets_and_result_files_needs_no_torch():
    code = (
        "import sys, dflash.evaluation.prompt_sets, dflash.evaluation.report_file, dflash.evaluation.journal\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
