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


def test_a_conversation_goes_on_from_its_history(client):
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    alone = client.predict("Go on.", 8, api_name="/decode")
    behind = client.predict("Go on.", 8, 0, 0.0, "target", "", 0, said, api_name="/decode")
    assert behind["draft"]["prompt_tokens"] > alone["draft"]["prompt_tokens"]
    assert behind["settings"]["history"] == said and behind["identical"] is True


def test_a_decoded_trace_is_saved_and_opened_by_its_link(client):
    trace = client.predict("Keep this.", 8, api_name="/decode")
    saved = client.predict(trace, api_name="/save_trace")
    assert saved["link"] == f"/?trace={saved['id']}"
    again = client.predict(saved["link"], api_name="/open_trace")
    assert again.pop("saved") and trace.pop("saved") is None
    assert again == trace


@pytest.mark.parametrize(
    ("endpoint", "arguments", "sentence"),
    [
        ("/save_trace", ({"format": 1},), "no trace of the Decode page"),
        ("/open_trace", ("../../etc/passwd",), "names no saved trace"),
        ("/compare_ways", ("Hi", 8, [{"block_size": "big"}]), "block_size of a way to decode is 'big'"),
        ("/compare_ways", ("Hi", 8, ["shipped"]), "an object with `kind`"),
        ("/compare_ways", ("Hi", 8, [{"kind": "draft", "colour": 1}]), "no field 'colour'"),
        ("/compare_ways", ("Hi", 8, None, 10, "/no/such/model"), "small model cannot be used"),
        ("/decode", ("Hi", 8, 0, 0.0, "target", "", 0, [{"role": "alien", "content": "x"}]), "needs a role"),
        ("/leak_test", ("/no/such/folder",), "/no/such/folder"),
        ("/anatomy_cell", (5, 100_000), "does not exist"),
        ("/anatomy_plan", ("", 600), "Number of anchors 600"),
    ],
)
def test_mistakes_of_every_endpoint_are_one_sentence(client, endpoint, arguments, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(*arguments, api_name=endpoint)


def test_ways_are_measured_side_by_side(client, tiny_target_folder):
    drafts = [{"block_size": 3}, {"block_size": 4}]
    rows = client.predict("Count.", 16, drafts, 5, tiny_target_folder, 0.0, 0, 2, api_name="/compare_ways")
    assert [row["kind"] for row in rows] == ["target", "draft", "draft", "plain", "prompt_lookup", "assistant"]
    assert all(len(row["tok_s_rounds"]) == 2 and row["tokens"] == 16 for row in rows)
    assert rows[0]["yardstick"] and rows[0]["speedup"] == 1.0
    assert rows[1]["identical"] and rows[2]["identical"]
    assert rows[5]["tau"] > 1.5, "a small model that is the target itself guesses right"
    assert {row["engine"] for row in rows[3:]} == {"transformers"}


def test_a_cell_is_explained(client):
    plan = client.predict("", 4, 4, 4.0, 0, 0, 1, api_name="/anatomy_plan")
    anchor = plan["anchors"][1]
    shown = [client.predict(4, anchor - back, "", 4, 4, 0, 0, api_name="/anatomy_cell") for back in (1, 0)]
    assert [cell["visible"] for cell in shown] == [True, False]
    assert "strictly before the anchor" in shown[0]["why"] and "does not exist yet" in shown[1]["why"]


def test_both_gates_run_as_endpoints(client):
    leak = client.predict(api_name="/leak_test")
    assert leak["passed"] is True and max(case["outside"] for case in leak["cases"]) == 0
    layers = client.predict(api_name="/layer_check")
    assert layers["passed"] is False and layers["reason"], "the draft of this test is random"
    assert [row["offset"] for row in layers["rows"]] == [-1, 0, 1] and layers["conversations"] >= 4


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
