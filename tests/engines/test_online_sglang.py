"""The online source against a real SGLang server: the target's numbers, refusals, and nothing left in the store."""

import itertools
import json
import re
import threading
import time
from contextlib import suppress

import pytest
import torch
from launched import Launched, in_process, online_tree

from dflash.data.rows import Row
from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.features.prefetch import Prefetcher
from dflash.features.source import looking_ahead
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.master import MasterProcess
from dflash.online.ports import free_port
from dflash.online.server import ServerProcess
from dflash.online.server_settings import ServerSettings
from dflash.online.source import OnlineFeatures
from dflash.online.store import MooncakeStore, StoreSettings, key_prefix, usage
from dflash.target import TargetModel

LAYERS = (0, 2, 4)
WIDTH = len(LAYERS) * 32


@pytest.fixture(scope="module")
def server(serve, tiny_target_folder):
    return serve(ServerSettings(tiny_target_folder, LAYERS, free_port(), context_length=512, chunked_prefill=64))


@pytest.fixture
def source(master, server):
    store = MooncakeStore.connect(StoreSettings(master.address, master.metrics))
    layout = Layout(LAYERS, WIDTH, torch.bfloat16)
    source = OnlineFeatures([server.url], store, layout, FetchSettings(key_prefix("run", "0"), in_flight=6))
    yield source
    source.close()


def rows(count: int) -> list[Row]:
    """One conversation each, but every third row packs two."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for n in range(count):
        length = 20 + 37 * n % 150
        tokens = torch.randint(1, 256, (length,), generator=generator).tolist()
        packed = {"ids": (f"c{n}a", f"c{n}b"), "starts": (0, length // 3)} if n % 3 == 2 else {"ids": (f"c{n}",)}
        result.append(Row(input_ids=tokens, loss_mask=[True] * length, **packed))
    return result


@torch.no_grad()
def test_the_features_are_those_of_the_target_in_process(source, master, tiny_target_folder):
    targets = (TargetModel.load(tiny_target_folder, dtype=dtype) for dtype in ("bfloat16", "float32"))
    rounded, exact = (InProcessFeatures(target, LAYERS) for target in targets)
    items = [rows(24)[start : start + 2] for start in range(0, 24, 2)]
    with Prefetcher(lambda item: (item, source(item)), looking_ahead(source, items, list), depth=2) as batches:
        for item, features in batches:
            expected, best = exact(item), rounded(item)
            assert features.dtype == torch.bfloat16 and features.shape == expected.shape
            error, allowed = ((f.float() - expected).square().mean().sqrt() for f in (features, best))
            assert error < 1.5 * allowed + 1e-3  # both round to bf16 at every step, but sum in different orders
    assert source.statistics().documents == 32 and source.statistics().retries == 0
    assert usage(master.metrics).objects == 0


def test_a_prompt_that_is_too_long_is_refused_by_the_server_and_named(source, master):
    long = Row(("the long one",), [1] * 600, [True] * 600)
    with pytest.raises(UserError, match=r"conversation 'the long one' \(600 tokens\) were refused; .*HTTP 400"):
        source([long])
    assert usage(master.metrics).objects == 0


def attached(tree: dict, server: ServerProcess, master: MasterProcess) -> dict:
    """The same run with servers that run already."""
    online = {"servers": [server.url], "master": master.address, "metrics_port": int(master.metrics.rpartition(":")[2])}
    draft = {**tree["draft"], "target_layer_ids": list(LAYERS)}
    return {**tree, "draft": draft, "online": online | {"in_flight": 4}}


def test_training_uses_servers_that_run_already_and_leaves_them_as_they_were(
    server, master, tiny_target_folder, tmp_path
):
    tree = attached(online_tree(tiny_target_folder, tmp_path, steps=6), server, master)
    run = Launched(tree, tmp_path, variables={"TRAINS_ALONE": "1"})
    try:
        assert run.wait() == 0, run.said
    finally:
        run.end()
    losses, order = in_process(tree, tmp_path)
    assert run.losses() == pytest.approx(losses, rel=2e-3)
    assert run.trained() == order  # one rank, so in the same order
    assert usage(master.metrics).objects == 0 and server.child.returncode is None


def test_a_server_that_takes_shorter_documents_than_the_run_has_is_noticed_before_training(
    server, master, tiny_target_folder, tmp_path
):
    tree = attached(online_tree(tiny_target_folder, tmp_path), server, master)
    tree["data"]["max_length"] = 506
    run = Launched(tree, tmp_path, variables={"TRAINS_ALONE": "1"})
    try:
        assert run.wait() == 2, run.said
    finally:
        run.end()
    assert "data.max_length = 506, but server" in run.said and "of 505 tokens at most" in run.said
    assert run.step() == 0 and usage(master.metrics).objects == 0


def test_a_run_with_a_conversation_that_is_too_long_for_its_server_ends_with_the_conversations_name(
    environment, tiny_target_folder, tmp_path
):
    """Its server was given another length than the run's behind its back."""
    arguments = ["--context-length=100"]
    tree = online_tree(tiny_target_folder, tmp_path, servers=1, ranks=1, steps=20, server_arguments=arguments)
    with open(tree["data"]["train"][0], "a") as talks:
        for n in range(8):
            messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": f"{n} two three " * 60}]
            talks.write(json.dumps({"id": f"long{n}", "messages": messages}) + "\n")
    run = Launched(tree, tmp_path)
    try:
        assert run.wait() == 1, run.said
    finally:
        run.end()
    assert re.search(r"The features of conversation 'long\d' \(128 tokens\) were refused; .*HTTP 400", run.said)
    assert run.status()["state"] == "failed"
    assert "The store holds 0 object(s) at the end" in run.said


def test_closing_in_the_middle_leaves_nothing_in_the_store(source, master):
    used = []

    def use() -> None:
        with suppress(RuntimeError):  # the source was closed
            for item in looking_ahead(source, itertools.cycle([[row] for row in rows(24)]), list):
                used.append(source(item))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    while len(used) < 5:
        time.sleep(0.01)
    source.close()
    thread.join(5)
    assert not thread.is_alive()
    time.sleep(2)  # for what a server may still write
    assert usage(master.metrics).objects == 0
