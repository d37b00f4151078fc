"""Servers and a store that run already: what does not fit the run is refused before it trains, and nothing else is."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from online_fakes import FakeServer, FakeStore
from tiny_runs import tiny_config, write_conversations
from transformers import AutoTokenizer

from dflash.errors import UserError
from dflash.online.model_proof import model_name, require_same_model
from dflash.online.opening import open_online
from dflash.online.store import Usage
from dflash.online.store_errors import MasterDown
from dflash.training.world import World

LAYER_IDS = (1, 2, 3)
MAX_LENGTH, IN_FLIGHT, WIDTH = 128, 4, 3 * 32
NEEDED = IN_FLIGHT * MAX_LENGTH * WIDTH * 4  # float32


@pytest.fixture
def server(tiny_target_folder):
    fake = FakeServer(FakeStore())
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_folder)
    fake.encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
    fake.layer_ids, fake.info["model_path"] = LAYER_IDS, tiny_target_folder
    yield fake
    fake.die()


@pytest.fixture
def attach(server, tiny_target, tiny_target_folder, tmp_path, monkeypatch):
    """Opens the online source of a run on that server."""
    monkeypatch.setattr("dflash.online.opening.join_store", lambda config, endpoints: server.store)
    server.store.settings = SimpleNamespace(master="127.0.0.1:1")

    def open_(**target) -> None:
        config = tiny_config(
            tiny_target_folder,
            write_conversations(tmp_path / "talk.jsonl"),
            data={"max_length": MAX_LENGTH},
            features={"source": "online"},
            online={"servers": [server.address], "master": "127.0.0.1:1", "in_flight": IN_FLIGHT},
        )
        config = config.model_copy(update={"target": config.target.model_copy(update=target)})
        open_online(config, tiny_target, LAYER_IDS, World(0, 1, torch.device("cpu")), tmp_path).close()

    return open_


def another_model(folder: Path, tiny_target_folder: str, **changes) -> str:
    """A folder with the tiny target's config.json, some of it changed."""
    tree = json.loads((Path(tiny_target_folder) / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tree | changes))
    return str(folder)


def test_a_server_and_a_store_that_fit_are_taken_without_a_word(attach, server, caplog):
    server.info["max_req_input_len"] = MAX_LENGTH + 1
    server.store.usage = lambda: Usage(0, NEEDED, 0)
    attach()
    assert not caplog.records and not server.store.objects


def test_a_server_of_a_model_of_other_sizes_is_refused(attach, server, tiny_target_folder, tmp_path):
    server.info["model_path"] = another_model(tmp_path / "large", tiny_target_folder, intermediate_size=65)
    with pytest.raises(UserError, match="serves '.*large', whose intermediate_size is 65, but that of target .* is 64"):
        attach()
    assert server.store.closed


def test_a_server_of_a_model_of_another_name_is_doubted_in_a_sentence(attach, server, caplog):
    server.info["model_path"] = "/models/Another-Base"
    attach()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "serves '/models/Another-Base', and the target is" in record.getMessage()


def test_documents_that_are_too_long_for_a_server_are_noticed_before_training(attach, server):
    server.info["max_req_input_len"] = MAX_LENGTH
    with pytest.raises(UserError, match=r"data.max_length = 128, but server .* takes documents of 127 tokens at most"):
        attach()


def test_a_store_that_cannot_hold_what_is_in_flight_is_noticed_before_training(attach, server):
    server.store.usage = lambda: Usage(0, NEEDED - 1, 0)
    with pytest.raises(UserError, match=r"The store at 127.0.0.1:1 holds .* GiB, less than .* online.in_flight = 4"):
        attach()


def test_a_store_whose_size_nobody_tells_is_taken_with_a_warning(attach, server, caplog):
    def fail():
        raise MasterDown("no metrics at 127.0.0.1:2")

    server.store.usage = fail
    attach()
    assert "Whether the store is large enough cannot be told: no metrics" in caplog.text


@pytest.mark.parametrize(
    ("served", "target"),
    [
        ("/models/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/models/Qwen3-8B/", "qwen/qwen3-8b"),
        ("/hub/models--Qwen--Qwen3-8B/snapshots/9c925d64d72725edaf899c6cb9c377fd0709d9c5", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "models--Qwen--Qwen3-8B/snapshots/9c925d64d72725edaf899c6cb9c377fd0709d9c5"),
        ("/another/machine/targets/smollm2-135m-v1", "smollm2-135m"),
        (None, "Qwen/Qwen3-8B"),  # a router does not say
    ],
)
def test_one_model_has_many_names(served, target):
    assert require_same_model("http://s", {"model_path": served}, target, None) is None


@pytest.mark.parametrize(
    ("served", "target"),
    [
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("/hub/models--Qwen--Qwen3-8B-Base/snapshots/1", "/models/Qwen3-8B"),
        ("/models/llama", "smollm2-135m"),
    ],
)
def test_other_names_raise_a_doubt_and_are_not_refused(served, target):
    doubt = require_same_model("http://s", {"model_path": served}, target, None)
    assert repr(served) in doubt and repr(target) in doubt


def test_models_that_are_both_known_here_are_compared_by_size():
    with pytest.raises(UserError, match="whose hidden_size is 2560, but that of target 'Qwen/Qwen3-8B' is 4096"):
        require_same_model("http://s", {"model_path": "Qwen/Qwen3-4B"}, "Qwen/Qwen3-8B", None)


def test_another_revision_raises_a_doubt_where_both_sides_name_one():
    info = {"model_path": "Qwen/Qwen3-8B", "revision": "a"}
    assert "revision 'a'" in require_same_model("http://s", info, "Qwen/Qwen3-8B", "b")
    for revision in ("a", None):
        assert require_same_model("http://s", info, "Qwen/Qwen3-8B", revision) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("gpt2", "gpt2"),
        ("models--gpt2/snapshots/1", "gpt2"),
        ("a/models--o--m--v2", "m--v2"),
        ("C:\\models\\m", "m"),
        ("/", "/"),
    ],
)
def test_the_name_of_a_model_is_the_last_part_that_means_something(path, name):
    assert model_name(path) == name
