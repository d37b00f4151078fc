"""The Acceptance page's actions as endpoints: what the page shows, as data; mistakes as sentences."""

import time

import pytest
from acceptance_results import write_result
from gradio_client import Client
from gradio_client.exceptions import AppError
from workbench_server import running_workbench, save_tiny_draft


@pytest.fixture(scope="module")
def client(tiny_target, tiny_target_folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("acceptance-api") / "runs"
    for name, right in (("one", 0), ("two", 3)):
        write_result(tiny_target, runs / ".evaluations" / f"{name}.json", right=right, draft_name=name)
    (runs / ".prompts").mkdir()
    (runs / ".prompts" / "mine.jsonl").write_text('{"id": "a", "turns": ["Hello"]}\n')
    draft = save_tiny_draft(tiny_target, runs.parent / "draft")
    with running_workbench(tiny_target_folder, draft, str(runs)) as address:
        yield Client(address, verbose=False)


def test_a_result_comes_with_everything_the_page_draws(client):
    assert {"one", "two"} <= set(client.predict(api_name="/evaluations")["results"])
    found = client.predict("two", api_name="/acceptance")
    assert found["draft"] == "two" and found["tau"]["prompts"] == 3
    assert set(found["tau_by_language"]) == {"English", "German", "French"}
    judged = sum(part["total"] for part in found["acceptance_by_entropy"])
    assert judged >= sum(missed["missed"]["hits"] for missed in found["most_missed"]) > 0
    assert sum(part["steps"] for part in found["tau_by_position"]) == found["acceptance"]["steps"]


def test_two_results_are_compared_by_prompt(client):
    pair = client.predict("one", "two", api_name="/compare_results")
    assert len(pair["pairs"]) == 3 == pair["better"] + pair["equal"] + pair["worse"]


def test_what_if_is_the_formula(client):
    assert client.predict(3.0, 20.0, 4.0, 25.0, 1.0, api_name="/whatif") == {
        "speedup": 2.0,
        "break_even_tau": 1.5,
        "step_ms": 30.0,
    }


@pytest.mark.parametrize(
    ("endpoint", "arguments", "said"),
    [
        ("/acceptance", ("gone",), "no result 'gone'"),
        ("/acceptance", ("../one",), "no plain name"),
        ("/whatif", (0.2, 20.0, 4.0, 25.0, 1.0), "tau is 0.2"),
        ("/evaluate_start", ([],), "No prompt set"),
        ("/evaluate_start", (["mine"], "/no/such/draft"), "/no/such/draft"),
        ("/evaluate_stop", ("nothing",), "no job 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(client, endpoint, arguments, said):
    with pytest.raises(AppError, match=said):
        client.predict(*arguments, api_name=endpoint)


def test_an_evaluation_is_started_and_stopped_through_the_api(client):
    begun = client.predict(["mine"], "", 1, 4, api_name="/evaluate_start")
    assert begun["state"] in ("queued", "running")
    deadline = time.monotonic() + 240
    while True:
        row = next(row for row in client.predict(api_name="/evaluate_jobs") if row["name"] == begun["job"])
        if row["state"] not in ("queued", "running"):
            break
        assert time.monotonic() < deadline, row
        time.sleep(0.5)
    assert (row["state"], row["result"]) == ("done", begun["result"]), row
    with pytest.raises(AppError, match="not run|no longer|not waiting|does not"):
        client.predict(begun["job"], api_name="/evaluate_stop")
