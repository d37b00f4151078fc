"""The Train page's endpoints, with a real tiny training: preview, start, queue, abort, stop, resume."""

import time
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from tiny_runs import write_conversations
from workbench_server import running_workbench, save_tiny_draft

QUICK = "smollm2-135m-quick"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train-api")


@pytest.fixture(scope="module")
def client(folder, tiny_target, tiny_target_folder):
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(folder / "runs")) as address:
        yield Client(address, verbose=False)


@pytest.fixture(scope="module")
def overrides(folder, tiny_target_folder) -> list[str]:
    return [
        f"target.name={tiny_target_folder}",
        "target.dtype=float32",
        "draft.num_features=3",
        "draft.block_size=4",
        "draft.init=random",
        f"data.train=[{write_conversations(folder / 'talks.jsonl')}]",
        "data.validation_size=2",
        "data.max_length=128",
        "blocks.num_anchors=8",
        "objective.candidates=null",
        "run.batch_size=2",
        "run.autocast=false",
        "run.device=cpu",
        "checkpoint.every=10",
    ]


def row(client, name: str) -> dict:
    return next(job for job in client.predict(api_name="/jobs") if job["name"] == name)


def wait_for(client, name: str, *states: str, seconds: float = 240.0) -> dict:
    deadline = time.monotonic() + seconds
    while (job := row(client, name))["state"] not in states:
        assert time.monotonic() < deadline and job["state"] != "failed", job
        time.sleep(0.3)
    return job


def test_preview_tells_config_command_steps_and_memory_without_starting_anything(client, overrides, folder):
    result = client.predict(QUICK, [*overrides, "run.max_steps=12"], "planned", 1, api_name="/train_preview")
    assert result["ready"] and result["faults"] == [] and result["name"] == "planned"
    assert result["derived"]["steps"] == 12 and result["config"]["run"]["max_steps"] == 12
    assert result["derived"]["device_bytes"] > 0 and result["command"].startswith("dflash train smollm2-135m-quick")
    assert not (folder / "runs" / "planned").exists()


def test_preview_tells_faults_in_the_configs_words(client, overrides):
    result = client.predict(QUICK, [*overrides, "run.batch_size=none"], "", 1, api_name="/train_preview")
    assert not result["ready"] and "run.batch_size" in result["faults"][0]


def test_a_training_is_started_queued_behind_aborted_stopped_and_resumed(client, overrides, folder):
    endless = [*overrides, "run.max_steps=1000000"]
    job = client.predict(QUICK, endless, "long", 1, api_name="/train_start")
    assert job["state"] == "running" and Path(job["config"]).is_file()
    queued = client.predict(QUICK, [*overrides, "run.max_steps=2"], "short", 1, api_name="/queue_add")
    assert queued["state"] == "queued"
    with pytest.raises(AppError, match="running already"):
        client.predict(QUICK, endless, "long", 1, api_name="/train_start")
    with pytest.raises(AppError, match="abort it instead"):
        client.predict("short", api_name="/train_stop")
    assert client.predict("short", api_name="/queue_abort") is True
    wait_for(client, "long", "running")
    client.predict("long", api_name="/train_stop")
    stopped = wait_for(client, "long", "stopped")
    assert stopped["actions"] == ["resume"] and stopped["step"] >= 0
    client.predict("long", api_name="/train_resume")
    assert wait_for(client, "long", "running")["step"] >= stopped["step"]
    client.predict("long", 0, api_name="/train_stop")
    wait_for(client, "long", "stopped")
    assert [job["name"] for job in client.predict(api_name="/jobs")] == ["long"]


@pytest.mark.parametrize(
    ("arguments", "endpoint", "sentence"),
    [
        (("no-such", [], "", 1), "/train_preview", "no recipe 'no-such'"),
        ((QUICK, ["run.seed"], "", 1), "/train_preview", "not of the form"),
        ((QUICK, [], "../x", 1), "/train_start", "no plain name"),
        ((QUICK, ["data.train=[/no/such.jsonl]"], "x", 1), "/queue_add", "/no/such.jsonl"),
        (("nothing",), "/train_stop", "no job 'nothing'"),
        (("nothing",), "/train_resume", "no run 'nothing'"),
        (("nothing",), "/queue_abort", "no job 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(client, arguments, endpoint, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(*arguments, api_name=endpoint)
