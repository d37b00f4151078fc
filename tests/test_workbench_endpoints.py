"""Endpoints that compute take their turn, and end when their client cancels them or goes away."""

import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from waiting import until
from workbench_server import PATIENCE, running_workbench, save_tiny_draft

from dflash.target import TargetModel
from workbench.turns import bench_turns

TOKENS = 400  # decoded by the target alone; each takes as long as `forwards` makes it
SOON = 10 * PATIENCE


@pytest.fixture(scope="module")
def address(tiny_target, tiny_target_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoints")
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(folder / "runs")) as address:
        Client(address, verbose=False).predict("Warm up.", 8, api_name="/decode")
        yield address


@pytest.fixture
def client(address) -> Client:
    return Client(address, verbose=False)


@pytest.fixture
def forwards(monkeypatch) -> list[float]:
    """When the target was run; each takes 20 ms longer, so that nothing is over by itself while a test looks."""
    seen: list[float] = []
    real = TargetModel.forward

    def slow(self, *args, **options):
        seen.append(time.monotonic())
        time.sleep(0.02)
        return real(self, *args, **options)

    monkeypatch.setattr(TargetModel, "forward", slow)
    yield seen
    until(lambda: len(bench_turns) == 0, SOON)


def assert_the_work_ends(forwards) -> None:
    until(lambda: len(bench_turns) == 0, SOON)
    count = len(forwards)
    assert count < TOKENS, "it was decoded to its end"
    time.sleep(0.2)
    assert len(forwards) == count


def asked(address: str, prompt: str, tokens: int) -> str:
    """Where a plain HTTP client reads the answer of a decoding that it has asked for."""
    url = f"{address}gradio_api/call/decode"
    call = httpx.post(url, json={"data": [prompt, tokens, 0, 0.0, "target", "", 0, None]}).raise_for_status()
    return f"{url}/{call.json()['event_id']}"


@pytest.mark.parametrize("endpoint", ["/decode", "/compare_ways"])
def test_a_cancelled_job_ends_its_work_and_frees_its_turn(client, forwards, endpoint):
    job = client.submit("Go on.", TOKENS, api_name=endpoint)
    until(lambda: len(forwards) > 3, SOON)
    job.cancel()
    assert_the_work_ends(forwards)


def test_a_client_that_goes_away_ends_its_work(address, forwards):
    with httpx.stream("GET", asked(address, "Go on.", TOKENS), timeout=SOON) as answer:
        next(answer.iter_lines())
        until(lambda: len(forwards) > 3, SOON)
    assert_the_work_ends(forwards)


def test_a_job_that_is_cancelled_while_it_waits_leaves_the_queue(client, forwards):
    with bench_turns.ticket():
        job = client.submit("Go on.", TOKENS, api_name="/decode")
        until(lambda: len(bench_turns) == 2, SOON)
        job.cancel()
        until(lambda: len(bench_turns) == 1, SOON)
    assert forwards == []


@pytest.mark.parametrize(("endpoint", "arguments"), [("/anatomy_plan", ()), ("/anatomy_cell", (5, 3))])
def test_laying_out_a_conversation_waits_for_its_turn(client, endpoint, arguments):
    with bench_turns.ticket():
        job = client.submit(*arguments, api_name=endpoint)
        until(lambda: len(bench_turns) == 2, SOON)
        time.sleep(0.5)
        assert not job.done()
    assert job.result(timeout=SOON)


def test_the_last_thing_a_plain_http_client_is_told_is_the_result(address):
    told = httpx.get(asked(address, "Hello.", 8), timeout=SOON).text
    assert "event: complete\ndata: [{" in told and '"identical": true' in told.rpartition("event: complete")[2]


def test_an_unforeseen_error_is_a_sentence_with_its_kind(client, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(TargetModel, "forward", broken)
    with pytest.raises(AppError, match=r"not yours \(ZeroDivisionError: no such thing\)"):
        client.predict("Hello.", 8, api_name="/decode")
    assert len(bench_turns) == 0
