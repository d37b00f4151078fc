"""A real SGLang server with the plugin, a real Mooncake master: what is captured, and that nothing fails in silence."""

import json
import threading
import urllib.error
import urllib.request

import pytest
import torch

from dflash.errors import UserError
from dflash.online.capture_proof import require_capture, require_proof
from dflash.online.capture_record import CaptureFailed, CaptureRecord
from dflash.online.capture_settings import CaptureSettings
from dflash.online.master import MasterProcess
from dflash.online.ports import free_port
from dflash.online.server import ServerProcess
from dflash.online.server_settings import ServerSettings
from dflash.online.store import MooncakeStore, StoreSettings, key_prefix
from dflash.online.store_errors import StoreFull
from dflash.target import TargetModel

LAYERS = (1, 3, 4)
CHUNK = 64  # tokens of a prefill chunk
SEGMENT = 16 << 20  # the least that Mooncake takes
START = 600.0  # seconds; 30 on a machine that does nothing else
VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PREFIX = key_prefix("test")


@pytest.fixture(scope="module")
def server(serve, tiny_target_folder):
    return serve(settings(tiny_target_folder), segment_bytes=SEGMENT, store_last_hidden_states=True)


def settings(target_folder: str) -> ServerSettings:
    return ServerSettings(
        target_folder, LAYERS, free_port(), context_length=512, chunked_prefill=CHUNK, cached_tokens=2048
    )


@pytest.fixture
def store(master):
    with MooncakeStore.connect(StoreSettings(master.address, master.metrics)) as store:
        yield store
        store.sweep(PREFIX)


@pytest.fixture(scope="module")
def target(tiny_target_folder) -> TargetModel:
    return TargetModel.load(tiny_target_folder, dtype="bfloat16")


@pytest.fixture(scope="module")
def exact_target(tiny_target_folder) -> TargetModel:
    return TargetModel.load(tiny_target_folder, dtype="float32")


def reference(target: TargetModel, tokens: list[int]) -> dict[str, torch.Tensor]:
    """What transformers computes: hidden_states[i + 1] is the output of layer i, the last one has passed the norm."""
    states = target.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return {
        "features": torch.cat([states[i + 1][0] for i in LAYERS], dim=-1).float(),
        "last_hidden_states": states[-1][0].float(),
    }


def ask(server: ServerProcess, tokens: list[int], name: str, **options) -> dict:
    """The `meta_info` of the answer to one prompt."""
    body = {
        "input_ids": tokens,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_hidden_states": True,
        "rid": f"{PREFIX}0/{name}",
    } | options
    request = urllib.request.Request(
        f"{server.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())["meta_info"]


def fetch(store: MooncakeStore, record: CaptureRecord) -> dict[str, torch.Tensor]:
    """Everything that was stored for a prompt, by the last part of its key; removed from the store afterwards."""
    buffer = store.allocate(sum(tensor.bytes for tensor in record.tensors))
    views, start = {}, 0
    for tensor in record.tensors:
        view = buffer[start : start + tensor.bytes].view(getattr(torch, tensor.dtype)).view(tensor.shape)
        views[tensor.key], start = view, start + tensor.bytes
    store.get(views)
    assert store.remove(list(views)) == len(views)
    found = {key.rpartition("/")[2]: view.clone() for key, view in views.items()}
    store.release(buffer)
    return found


def assert_equal_but_for_rounding(found: torch.Tensor, rounded: torch.Tensor, exact: torch.Tensor) -> None:
    """As close to the float32 target as transformers' own bf16 forward: both round to 8 bits at every step, but sum in
    different orders. The wrong layer, token or norm would be off by the values themselves."""
    error, allowed = ((states.float() - exact).square().mean().sqrt() for states in (found, rounded))
    assert error < 1.5 * allowed + 1e-3 and error < 0.02 * exact.abs().max(), f"{error:.4f}, bf16 costs {allowed:.4f}"


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK + 7])
def test_every_token_of_every_chunk_is_captured_as_transformers_computes_it(
    server, store, target, exact_target, length
):
    tokens = prompt(length, seed=length)
    record = CaptureRecord.from_meta_info(ask(server, tokens, f"length{length}"))
    assert record.layer_ids == LAYERS
    assert record.features.shape == (length, len(LAYERS) * 32) and record.features.dtype == "bfloat16"
    found = fetch(store, record)
    rounded, exact = reference(target, tokens), reference(exact_target, tokens)
    for name in ("features", "last_hidden_states"):
        assert_equal_but_for_rounding(found[name], rounded[name], exact[name])
    assert store.usage().objects == 0


def test_prompts_that_share_a_batch_and_a_beginning_keep_their_own_rows(server, store, target, exact_target):
    beginning = prompt(CHUNK, seed=7)
    prompts = {f"p{i}": [*beginning, *prompt(i * 29, seed=i)] for i in range(6)}
    answers: dict[str, dict] = {}
    threads = [
        threading.Thread(target=lambda name=name: answers.update({name: ask(server, prompts[name], name)}))
        for name in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, tokens in prompts.items():
        record = CaptureRecord.from_meta_info(answers[name])
        assert record.features.key.startswith(f"{PREFIX}0/{name}/")
        rounded, exact = (reference(model, tokens)["features"] for model in (target, exact_target))
        assert_equal_but_for_rounding(fetch(store, record)["features"], rounded, exact)
    assert store.usage().objects == 0


def test_tokens_generated_behind_the_prompt_are_not_captured(server, store):
    meta = ask(
        server, prompt(10, 1), "longer", sampling_params={"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}
    )
    assert meta["completion_tokens"] == 20
    assert fetch(store, CaptureRecord.from_meta_info(meta))["features"].shape == (10, 96)


def test_requests_that_ask_for_no_hidden_states_store_nothing(server, store):
    assert "hidden_states" not in ask(server, prompt(10, 1), "plain", return_hidden_states=False)
    assert store.usage().objects == 0


def test_the_same_request_twice_is_stored_under_two_keys(server, store):
    first, second = (CaptureRecord.from_meta_info(ask(server, prompt(5, 1), "twice")) for _ in range(2))
    assert first.features.key != second.features.key
    assert torch.equal(fetch(store, first)["features"], fetch(store, second)["features"])


def test_a_full_store_fails_the_request_and_the_next_one_works_when_there_is_room_again(server, store):
    filler = store.allocate(1 << 20)
    with pytest.raises(StoreFull):
        for i in range(100):
            store.put({f"{PREFIX}filler/{i}": filler})
    objects = store.usage().objects
    with pytest.raises(CaptureFailed, match="no room"):
        for i in range(20):  # fragments are left for a few
            CaptureRecord.from_meta_info(ask(server, prompt(500, i), f"fill{i}"))
            objects += 2
    assert store.usage().objects == objects  # nothing is left of the one that failed
    store.sweep(f"{PREFIX}filler/")
    fetch(store, CaptureRecord.from_meta_info(ask(server, prompt(500, 0), "again")))


def test_a_prompt_that_is_too_long_is_refused_and_stores_nothing(server, store):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(server, prompt(600, 1), "long")
    assert refusal.value.code == 400
    assert store.usage().objects == 0


def test_the_server_proves_that_it_captures_and_what(server, master):
    info = require_proof(server.url, layer_ids=LAYERS, store=master.address, store_last_hidden_states=True)
    assert info["version"] == "0.5.23"
    report = info["internal_states"][0]["dflash_capture"]
    assert report["pending"] == 0 and report["written"] >= 1 and report["tokens"] >= 1


def test_one_prompt_is_captured_to_prove_it_and_leaves_nothing_behind(server, store, tmp_path):
    require_capture(server.url, store)
    assert store.usage().objects == 0
    with MasterProcess(tmp_path / "other.log", port=free_port(), metrics_port=free_port()) as other:
        with MooncakeStore.connect(StoreSettings(other.address)) as elsewhere:
            with pytest.raises(UserError, match="the same Mooncake master"):
                require_capture(server.url, elsewhere)
    store.sweep("dflash/probe/")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"layer_ids": (1, 3), "store_last_hidden_states": True}, "layer_ids"),
        ({"layer_ids": LAYERS}, "store_last_hidden_states"),
        ({"layer_ids": LAYERS, "store_last_hidden_states": True, "store": "127.0.0.1:1"}, "store"),
    ],
)
def test_a_server_that_captures_something_else_is_refused(server, wanted, words):
    with pytest.raises(UserError, match=words):
        require_proof(server.url, **wanted)


def test_a_server_whose_plugin_was_not_loaded_is_found_out(environment, master, tiny_target_folder, tmp_path):
    variables = VARIABLES | {"SGLANG_PLUGINS": "another"}  # SGLang's own way to leave plugins out
    capture = CaptureSettings(master.address, segment_bytes=SEGMENT)
    with ServerProcess(
        settings(tiny_target_folder), capture, environment, tmp_path / "server.log", variables
    ) as process:
        with pytest.raises(UserError, match="without the capture plugin"):
            process.wait_ready(START)
        with MooncakeStore.connect(StoreSettings(master.address)) as store:
            with pytest.raises(UserError, match="does not capture"):
                require_capture(process.url, store)


def test_the_servers_command_line_for_gpus_and_for_a_cpu():
    cpu = ServerSettings("folder", (1, 9), 30000).arguments()
    assert {"--device=cpu", "--sleep-on-idle", "--disable-radix-cache", "--max-total-tokens=4096"} <= set(cpu)
    gpu = ServerSettings(
        "org/model", (1, 9), 30000, gpus=("2", "3"), memory_fraction=0.8, extra=("--log-level=error",)
    ).arguments()
    assert {"--tp-size=2", "--mem-fraction-static=0.8", "--log-level=error"} <= set(gpu)
    assert "--device=cpu" not in gpu and "--max-total-tokens=4096" not in gpu
    for arguments in (cpu, gpu):
        place = arguments.index("--return-aux-hidden-state-layer-ids")
        assert arguments[place + 1 : place + 3] == ["1", "9"]
