"""Regenerated answers from a real SGLang server: the target's own greedy words, one server for answers and features."""

import json

import pytest
import torch
from launched import Launched, online_tree
from transformers import AutoTokenizer, LlamaForCausalLM

from dflash.cli.main import main
from dflash.data.conversations import read_conversations
from dflash.data.rows import build_rows
from dflash.data.template import render
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.ports import free_port
from dflash.online.server_settings import ServerSettings
from dflash.online.source import OnlineFeatures
from dflash.online.store import MooncakeStore, StoreSettings, key_prefix, usage
from dflash.target import TargetModel

LAYERS = (0, 2, 4)


@pytest.fixture(scope="module")
def speaking_target(tiny_target_folder, tmp_path_factory) -> str:
    """The tiny target without the tokens that its tokenizer has no text for: a zero never is the greatest logit."""
    folder = tmp_path_factory.mktemp("speaking-target")
    model = LlamaForCausalLM.from_pretrained(tiny_target_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_folder)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(serve, speaking_target):
    """In float32, in which a greedy choice of this random target is no tie."""
    return serve(
        ServerSettings(speaking_target, LAYERS, free_port(), dtype="float32", context_length=256, chunked_prefill=64)
    )


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "talk.jsonl"
    lines = []
    for n in range(5):
        messages = [{"role": "user", "content": f"Question number {n}?"}, {"role": "assistant", "content": "No idea."}]
        lines.append({"id": f"c{n}", "messages": messages * (1 + n % 2)})
    lines.append({"id": "long", "messages": [{"role": "user", "content": "x" * 300}]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@torch.no_grad()
def greedy(target: TargetModel, messages: list[dict], count: int) -> str:
    """The obvious reference: one whole forward per token."""
    text = target.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = target.tokenizer(text, add_special_tokens=False).input_ids
    answer = []
    for _ in range(count):
        logits = target.forward(torch.tensor([ids + answer])).logits
        token = int(logits[0, -1].argmax())
        if token in target.eos_token_ids:
            break
        answer.append(token)
    return target.tokenizer.decode(answer, skip_special_tokens=True)


def test_answers_are_the_targets_own_greedy_ones_and_their_features_come_from_the_same_server(
    server, master, data, tmp_path, speaking_target, capsys
):
    out = tmp_path / "out.jsonl"
    command = ["regenerate", str(data), "--server", server.url, "--out", str(out), "--max-new-tokens", "24"]
    assert main([*command, "--in-flight", "3"]) == 0
    said = capsys.readouterr().out
    assert "5 conversations" in said and "1 left out: a prompt that leaves no room for an answer in 250 tokens" in said
    target = TargetModel.load(speaking_target, dtype="float32")
    conversations = read_conversations(out)
    assert [conversation.id for conversation in conversations] == [f"c{n}" for n in range(5)]
    for conversation in conversations:
        for place, message in enumerate(conversation.messages):
            if message["role"] == "assistant":
                assert message["content"] == greedy(target, conversation.messages[:place], 24)
    provenance = json.loads((tmp_path / "out.jsonl.provenance.json").read_text())
    assert provenance["sglang"] == "0.5.23" and provenance["settings"]["model"] in speaking_target

    rendered = [render(conversation, target.tokenizer, 256) for conversation in conversations]
    rows = build_rows(rendered, max_length=256, packing=False)
    store = MooncakeStore.connect(StoreSettings(master.address, master.metrics))
    layout = Layout(LAYERS, len(LAYERS) * 32, torch.float32)
    source = OnlineFeatures([server.url], store, layout, FetchSettings(key_prefix("run", "0")))
    try:
        features = source(rows)
    finally:
        source.close()
    assert features.shape == (5, max(map(len, rows)), 96) and all(row.supervised > 10 for row in rows)
    assert usage(master.metrics).objects == 0  # answering puts nothing into the store


def test_a_launched_run_has_its_prompts_answered_and_trains_on_the_answers(
    environment, speaking_target, tmp_path
):
    tree = online_tree(speaking_target, tmp_path, servers=1, ranks=2, steps=3, regenerate=True, regenerate_tokens=12)
    tree["checkpoint"] = {"every": 3}
    run = Launched(tree, tmp_path)
    try:
        assert run.wait(1500) == 0, run.said
    finally:
        run.end()
    assert run.status()["state"] == "finished" and run.step() == 3
    answered = read_conversations(run.run / "regenerated.jsonl")
    assert [conversation.id for conversation in answered] == [f"c{n}" for n in range(40)]
    assert not any("one two three four" in conversation.messages[-1]["content"] for conversation in answered)
    provenance = json.loads((run.run / "regenerated.jsonl.provenance.json").read_text())
    assert provenance["settings"]["max_new_tokens"] == 12 and provenance["tokens"] <= 40 * 12
    assert "The store holds 0 object(s) at the end" in run.said
