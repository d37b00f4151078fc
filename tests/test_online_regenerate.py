"""Runs that have their answers regenerated first: trained on the target's own words, the same ones after any stop."""

import json
import textwrap
from pathlib import Path

import pytest
import torch
from online_fakes import FakeServer, FakeStore
from tiny_runs import metrics, tiny_config, torchrun, weights, write_conversations

from dflash.config import parse_config
from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.source import OnlineFeatures
from dflash.online.store import key_prefix
from dflash.training.trainer import train

LAYER_IDS = (1, 2, 3)


@pytest.fixture
def server(tiny_target):
    """Answers, and captures with the real target's numbers."""
    target, fake = InProcessFeatures(tiny_target, LAYER_IDS), FakeServer(FakeStore())
    with_grad = target.of_documents
    fake.compute = lambda tokens: torch.no_grad()(with_grad)([tokens], len(tokens))[0]
    fake.layer_ids = LAYER_IDS
    fake.encode = lambda text: tiny_target.tokenizer.encode(text, add_special_tokens=False)
    fake.reply = lambda tokens: f"my own answer {sum(tokens) % 977}"
    yield fake
    fake.die()


@pytest.fixture
def config(tiny_target_folder, tmp_path, server):
    talk = write_conversations(tmp_path / "talk.jsonl")

    def build(**online):
        online = {"servers": [server.address], "master": "127.0.0.1:1", "regenerate": True, **online}
        return tiny_config(tiny_target_folder, talk, features={"source": "online", "prefetch": 2}, online=online)

    return build


@pytest.fixture(autouse=True)
def go_online(monkeypatch, server):
    def open_source(config, target, layer_ids, rows, *, world, run_dir):
        if config.features.source == "in_process":
            return InProcessFeatures(target, layer_ids)
        layout = Layout(tuple(layer_ids), len(layer_ids) * target.hidden_size, target.dtype)
        return OnlineFeatures([server.address], server.store, layout, FetchSettings(key_prefix("run", "0")))

    monkeypatch.setattr("dflash.training.trainer.open_source", open_source)


def asked(server) -> list[str]:
    """The prompts that were to be answered."""
    requests = [request for request in server.requests if not request.get("return_hidden_states")]
    return [bytes(token for token in request["input_ids"] if token < 256).decode("latin1") for request in requests]


def test_a_run_trains_on_the_answers_that_its_servers_gave(config, tmp_path, server, tiny_target_folder):
    online = train(config(), tmp_path / "online", progress=False)
    data = tmp_path / "online" / "regenerated.jsonl"
    records = [json.loads(line) for line in data.read_text().splitlines()]
    assert [record["id"] for record in records] == [f"c{n}" for n in range(12)]
    assert all(record["messages"][-1]["content"].startswith("my own answer") for record in records)
    assert len(asked(server)) == 12
    # The curve is that of a run with the target in its own process, on a file that holds those answers.
    plain = tiny_config(tiny_target_folder, str(data), data={"min_supervised": 4}, features={"prefetch": 2})
    alone = train(plain, tmp_path / "alone", progress=False)
    assert metrics(tmp_path / "online") == metrics(tmp_path / "alone")
    ours, theirs = weights(online), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not server.store.objects


def test_a_run_that_goes_on_asks_for_no_answer_again(config, tmp_path, server):
    settings = config()
    whole = train(settings, tmp_path / "whole", progress=False)
    short = settings.model_copy(update={"run": settings.run.model_copy(update={"max_steps": 3})})
    train(short, tmp_path / "cut", progress=False)
    server.reply = lambda tokens: "something else"
    before = len(asked(server))
    # Not even when the data has changed since: the run keeps to what it began with.
    Path(settings.data.train[0]).write_text("gone\n")
    cut = train(settings, tmp_path / "cut", resume=True, progress=False)
    assert len(asked(server)) == before == 24
    assert (tmp_path / "cut" / "regenerated.jsonl").read_bytes() == (
        tmp_path / "whole" / "regenerated.jsonl"
    ).read_bytes()
    assert cut.exists() and whole.exists()


def test_a_run_that_failed_among_the_answers_goes_on_with_the_others(config, tmp_path, server):
    server.behave = lambda number, request: "answer" if number < 5 else "not found"
    with pytest.raises(UserError, match="HTTP 404"):
        train(config(regenerate_in_flight=1), tmp_path / "run", progress=False)
    first = asked(server)[:5]
    server.behave = lambda number, request: "answer"
    train(config(regenerate_in_flight=2), tmp_path / "run", progress=False)  # nothing was trained: the name is free
    later = asked(server)[6:]
    assert len(later) == 7 and not set(first) & set(later)


def test_other_settings_do_not_go_on_with_the_same_answers(config, tmp_path):
    train(config(), tmp_path / "run", progress=False)
    warmer = config(regenerate_temperature=0.5)
    warmer = warmer.model_copy(update={"run": warmer.run.model_copy(update={"max_steps": 8})})
    with pytest.raises(UserError, match=r"regenerated.jsonl is complete already, .*\(temperature = 0.0\)"):
        train(warmer, tmp_path / "run", resume=True, progress=False)


RANKS = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from dflash.config import TrainConfig
    from dflash.data.tokenizer import load_tokenizer
    from dflash.errors import UserError
    from dflash.online import regenerated_data
    from dflash.training.run_folder import RunFolder
    from dflash.training import world as worlds
    from dflash.training.world import joined
    worlds._PULSE_SECONDS = 0.2

    def main(here):
        config = TrainConfig.model_validate_json((here / "config.json").read_text())
        with joined(config) as world:
            tokenizer = load_tokenizer(config.target.name)
            try:
                data = regenerated_data.training_data(config, tokenizer, RunFolder(here), world)
                told = data.train
            except UserError as error:
                told = str(error)
            (here / f"rank{world.rank}.json").write_text(json.dumps(told))

    main(Path(sys.argv[1]))
""")


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_rank_asks_and_all_learn_what_came_of_it(config, tmp_path, server, fails):
    # Late: longer than ranks wait for a sign of life.
    server.behave = lambda number, request: "not found" if fails else "late"
    (tmp_path / "config.json").write_text(config(regenerate_in_flight=3).model_dump_json(exclude_unset=True))
    result = torchrun(2, RANKS, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    if fails:
        assert told[0] == told[1] and "HTTP 404" in told[0]
    else:
        assert told[0] == told[1] == [str(tmp_path / "regenerated.jsonl")]
        assert len(asked(server)) == 12


def test_without_the_setting_the_servers_are_asked_for_features_alone(config, tmp_path, server):
    train(config(regenerate=False), tmp_path / "run", progress=False)
    assert not asked(server) and not (tmp_path / "run" / "regenerated.jsonl").exists()


def test_settings_of_regeneration_want_regeneration():
    tree = {
        "data": {"train": ["talk.jsonl"]},
        "features": {"source": "online"},
        "online": {"regenerate_temperature": 0.5},
    }
    with pytest.raises(UserError, match="regenerate_temperature = 0.5 has no effect, .* set online.regenerate=true"):
        parse_config(tree, "test")
