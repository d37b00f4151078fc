"""Rendered conversations pass from the first rank to the others unchanged, and are rendered only once."""

import threading

import pytest
import torch

from dflash.config import DataConfig
from dflash.data.load import load_conversations
from dflash.data.rendered_file import read_rendered, write_rendered
from dflash.data.template import Rendered
from dflash.errors import UserError
from dflash.training import run_data
from dflash.training.run_folder import RunFolder
from dflash.training.world import World
from tiny_runs import write_conversations


def test_what_is_read_is_what_was_written(tmp_path):
    items = [
        Rendered("a", [5, 300, 5], [False, True, True]),
        Rendered('quo"ted\n\N{SNOWMAN}', [151_669], [True], truncated=True),
        Rendered("long", list(range(70_000, 70_011)), [i % 3 == 0 for i in range(11)]),
    ]
    write_rendered(tmp_path / "items.npz", items)
    again = read_rendered(tmp_path / "items.npz")
    assert again == items
    assert again[0].input_ids[0] is again[0].input_ids[2] and type(again[0].loss_mask[0]) is bool


class Pair:
    """Two worlds in two threads that agree as two processes would."""

    def __init__(self) -> None:
        self._meeting, self._said = threading.Barrier(2, timeout=60), {}
        self.worlds = [self._world(0), self._world(1)]

    def _world(self, rank: int) -> World:
        pair = self

        class Meeting(World):
            def gather(self, item, group=None):
                pair._said[rank] = item
                pair._meeting.wait()
                items = [pair._said[0], pair._said[1]]
                pair._meeting.wait()
                return items

            def on_main(self, work, group=None):
                outcome = None
                if rank == 0:
                    try:
                        outcome = (work(), None)
                    except UserError as error:
                        outcome = (None, error)
                value, error = self.gather(outcome)[0]
                if error:
                    raise error
                return value

            def barrier(self):
                pair._meeting.wait()

        return Meeting(rank, 2, torch.device("cpu"))

    def run(self, work) -> list:
        results = [None, None]

        def one(rank: int) -> None:
            try:
                results[rank] = work(self.worlds[rank])
            except UserError as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results


@pytest.fixture
def data(tmp_path):
    return DataConfig(train=[write_conversations(tmp_path / "talk.jsonl", 9)], max_length=60)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_only_the_first_rank_renders_and_no_file_stays_behind(data, run, tiny_target, monkeypatch):
    rendered = []
    real = run_data.load_conversations
    monkeypatch.setattr(run_data, "load_conversations", lambda *a, **o: rendered.append(1) or real(*a, **o))
    first, second = Pair().run(lambda world: run_data._rendered_once(data, tiny_target.tokenizer, run, world))
    assert rendered == [1]
    assert first == second == load_conversations(data, tiny_target.tokenizer).rendered
    assert any(item.truncated for item in first), "this test wants some"
    assert not list(run.path.iterdir())


def test_bad_data_and_a_full_disk_are_told_to_every_rank(data, run, tiny_target, monkeypatch):
    def full(path, _items):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_data, "write_rendered", full)
    said = Pair().run(lambda world: run_data._rendered_once(data, tiny_target.tokenizer, run, world))
    assert all("could not be written: No space left on device" in str(error) for error in said)
    assert not list(run.path.iterdir())
    gone = data.model_copy(update={"train": [str(run.path / "gone.jsonl")]})
    said = Pair().run(lambda world: run_data._rendered_once(gone, tiny_target.tokenizer, run, world))
    assert all(isinstance(error, UserError) and "gone.jsonl" in str(error) for error in said)
