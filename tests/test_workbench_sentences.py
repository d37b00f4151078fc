"""Whatever fails while a page computes ends as a sentence in the page, a traceback in the log and a free turn."""

import json
from pathlib import Path

import pytest
import torch
from workbench_server import save_tiny_draft

from dflash.errors import UserError
from dflash.target import TargetModel
from workbench.bench import Bench
from workbench.pages import anatomy_checks
from workbench.pages.decode import stream_race
from workbench.sentences import sentence_of
from workbench.turns import bench_turns

CONTROLS = {"prompt": "Go on.", "max_new_tokens": 8, "temperature": 0.0, "rule": "target", "draft": ""}


def raised(action) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def more_memory_than_there_is() -> torch.Tensor:
    return torch.empty(1 << 50, dtype=torch.uint8)


def test_a_users_mistake_keeps_its_words_and_is_not_logged(caplog):
    assert sentence_of(UserError("The prompt is empty.")) == "The prompt is empty." and not caplog.records


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (raised(more_memory_than_there_is), "The machine ran out of memory (RuntimeError)"),
        (MemoryError(), "The machine ran out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "The GPU ran out of memory (OutOf"),
    ],
    ids=["torch on the CPU", "Python", "a GPU"],
)
def test_memory_that_is_out_is_named_with_what_to_do(error, where, caplog):
    assert sentence_of(error).startswith(where) and "fewer tokens" in sentence_of(error)
    assert caplog.records[0].exc_info[1] is error


def test_anything_else_is_named_by_its_kind_in_one_short_line():
    words = sentence_of(KeyError("x" * 1000 + "\n" + "y"))
    assert "KeyError" in words and "server's log" in words and len(words) < 400 and "\n" not in words


@pytest.fixture
def bench(tiny_target, tiny_target_folder, tmp_path, monkeypatch) -> Bench:
    """Ready to decode, on a machine whose memory has run out since."""
    bench = Bench(tiny_target_folder, save_tiny_draft(tiny_target, tmp_path / "draft"), Path("no-runs"))
    bench.engine("")
    monkeypatch.setattr(TargetModel, "forward", lambda *args, **options: more_memory_than_there_is())
    return bench


def test_lanes_of_a_race_that_fails_do_not_wait_for_ever(bench, caplog):
    shown = json.loads(list(stream_race(bench, CONTROLS, "", False))[-1][0])
    assert shown["phase"] == "error" and "ran out of memory" in shown["message"]
    assert "more_memory_than_there_is" in caplog.text and len(bench_turns) == 0


def test_a_check_that_fails_says_so(bench, caplog):
    shown = list(anatomy_checks._stream(lambda report: str(bench.target.forward())))[-1]
    assert "ran out of memory" in shown and "more_memory_than_there_is" in caplog.text and len(bench_turns) == 0
