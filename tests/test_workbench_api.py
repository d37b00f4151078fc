"""Every action of the pages has a named endpoint, and mistakes come back as sentences."""

import json

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from workbench_server import running_workbench, save_tiny_draft


@pytest.fixture(scope="module")
def client(tiny_target, tiny_target_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workbench")
    draft = save_tiny_draft(tiny_target, folder / "draft")
    with running_workbench(tiny_target_folder, draft, str(folder / "runs")) as address:
        yield Client(address, verbose=False)


def test_decode_returns_both_traces_and_the_lossless_verdict(client):
    result = client.predict("Count to three.", 24, 0, 0.0, "target", "", 0, api_name="/decode")
    assert result["identical"] is True
    assert result["reference"]["tokens"] == result["draft"]["tokens"]
    assert len(result["target"]["tokens"]) == 24
    assert sum(result["accepted_histogram"]) == len(result["draft"]["steps"]) - 1
    assert result["speedup"] == pytest.approx(result["draft"]["tok_s"] / result["target"]["tok_s"])


def test_sampled_decoding_makes_no_claim_of_identity(client):
    result = client.predict("Hello.", 8, 0, 0.8, "rejection", "", 3, api_name="/decode")
    assert result["identical"] is None and result["reference"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("  ", 8, 0, 0.0, "target", "", 0), "prompt is empty"),
        (("Hi", 100_000, 0, 0.0, "target", "", 0), "tokens of context"),
        (("Hi", 8, 99, 0.0, "target", "", 0), "block_size 99"),
        (("Hi", 8, 0, -1.0, "target", "", 0), "temperature -1.0"),
        (("Hi", 8, 0, 0.5, "luck", "", 0), "Unknown verification rule"),
        (("Hi", 8, 0, 0.0, "target", "/no/such/folder", 0), "/no/such/folder"),
        (("Hi", 8, 0, 0.0, "target", "shipped", 0), "No draft is shipped"),
    ],
)
def test_mistakes_are_one_sentence(client, arguments, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(*arguments, api_name="/decode")


def test_anatomy_returns_anchors_slots_and_tiles(client):
    line = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you."}]})
    result = client.predict(line, 4, 4, 2.0, 0, 0, 1, api_name="/anatomy_plan")
    assert len(result["anchors"]) == 4 and result["block"] == 1
    assert [slot["position"] for slot in result["slots"]] == [result["anchors"][1] + k for k in range(4)]
    assert result["tiles"]["size"] == 128


def test_anatomy_names_a_bad_line(client):
    with pytest.raises(AppError, match="not valid JSON"):
        client.predict("{", 4, 4, 2.0, 0, 0, 0, api_name="/anatomy_plan")


def test_a_login_is_asked_for_where_one_is_set(tiny_target, tiny_target_folder, tmp_path):
    import urllib.error
    import urllib.request

    draft = save_tiny_draft(tiny_target, tmp_path / "draft")
    with running_workbench(tiny_target_folder, draft, str(tmp_path), auth=("me", "secret")) as address:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address + "config")
    assert refused.value.code == 401
