"""Training with features from elsewhere: the curve and the weights of training with the target, bit for bit."""

import json
import random
import threading
import time

import pytest
import torch
from online_fakes import FakeServer, FakeStore
from tiny_runs import ask_to_stop_behind, metrics, open_trainer, tiny_config, weights, write_conversations

from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.source import OnlineFeatures
from dflash.online.store import key_prefix
from dflash.training.trainer import train

LAYER_IDS = (1, 2, 3)  # what three features of six layers take by default


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    talk = write_conversations(tmp_path / "talk.jsonl")
    return lambda **sections: tiny_config(tiny_target_folder, talk, features={"prefetch": 2}, **sections)


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def servers(store, tiny_target):
    """Two servers with the real target's numbers; the first one fails a third of its requests."""
    target, one_at_a_time = InProcessFeatures(tiny_target, LAYER_IDS), threading.Lock()

    @torch.no_grad()
    def compute(tokens: list[int]) -> torch.Tensor:
        with one_at_a_time:
            return target.of_documents([tokens], len(tokens))[0]

    chance = random.Random(0)
    faults = ["hang up", "malformed", "lost", "busy"]
    started = [
        FakeServer(store, lambda number, request: chance.choice(faults) if chance.random() < 0.33 else "answer"),
        FakeServer(store),
    ]
    for server in started:
        server.compute, server.layer_ids = compute, LAYER_IDS
    yield started
    for server in started:
        server.die()


@pytest.fixture
def go_online(monkeypatch, store, servers):
    def open_source(config, target, layer_ids, rows, *, world, run_dir):
        layout = Layout(tuple(layer_ids), len(layer_ids) * target.hidden_size, target.dtype)
        addresses = [server.address for server in servers]
        return OnlineFeatures(addresses, store, layout, FetchSettings(key_prefix("run", "0"), in_flight=4))

    return lambda: monkeypatch.setattr("dflash.training.trainer.open_source", open_source)


@pytest.mark.parametrize("packing", [False, True])
def test_the_curve_and_the_weights_are_those_of_training_with_the_target(config, tmp_path, go_online, store, packing):
    settings = config(data={"packing": packing, "max_length": 160}, run={"micro_batch_size": 2})
    with_target = train(settings, tmp_path / "with-target", progress=False)
    go_online()
    online = train(settings, tmp_path / "online", progress=False)
    assert metrics(tmp_path / "online") == metrics(tmp_path / "with-target")
    ours, theirs = weights(online), weights(with_target)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not store.objects and store.closed


def test_every_record_tells_who_waits_for_whom(config, tmp_path, go_online, servers):
    go_online()
    train(config(), tmp_path / "run", progress=False)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    records = [line["online"] for line in lines if line["kind"] == "train"]
    assert len(records) == 6
    assert [server["address"] for server in records[-1]["servers"]] == [server.address for server in servers]
    assert records[0]["documents"] >= 2 and records[-1]["tokens"] > records[0]["tokens"]
    assert all(0 <= record["wait_percent"] <= 100 and record["in_flight_limit"] == 4 for record in records)
    read = sum(record["tokens_per_s"] * record["seconds"] for record in records)
    assert read == pytest.approx(records[-1]["tokens"])


def test_a_run_that_was_stopped_asks_again_for_what_was_in_flight(config, tmp_path, go_online, store):
    go_online()
    whole = train(config(), tmp_path / "whole", progress=False)
    with open_trainer(config(), tmp_path / "cut") as trainer:
        ask_to_stop_behind(trainer, 3)
        assert trainer.fit() is False
    assert not store.objects
    cut = train(config(), tmp_path / "cut", resume=True, progress=False)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    ours, theirs = weights(cut), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_refused_conversation_ends_the_run_and_is_named(config, tmp_path, go_online, store, servers):
    for server in servers:
        server.behave = lambda number, request: "refuse"
    go_online()
    with pytest.raises(UserError, match=r"The features of conversation 'c\d+' .* were refused; .*HTTP 400"):
        train(config(), tmp_path / "run", progress=False)
    assert not store.objects and store.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feature", "prefetch"))]


def test_an_error_of_the_trainer_does_not_wait_for_servers_that_do_not_answer(config, tmp_path, go_online, servers):
    go_online()
    with open_trainer(config(), tmp_path / "run") as trainer:

        def fail():
            raise ZeroDivisionError

        trainer._after_step = fail
        held = threading.Event()
        for server in servers:
            server.behave = lambda number, request: "answer" if number < 2 or held.wait(20) else "answer"
        started = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            trainer.fit()
        assert time.monotonic() - started < 10
    held.set()
