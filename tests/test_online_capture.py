"""From a forward's rows to the answer's record, with SGLang's objects played by fakes; the real ones: tests/engines."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from waiting import until

import dflash
from dflash.errors import UserError
from dflash.online import capture_plugin, capture_writer
from dflash.online.capture_proof import require_proof
from dflash.online.capture_record import CaptureFailed, CaptureRecord
from dflash.online.capture_settings import CaptureSettings
from dflash.online.capture_writer import CaptureWriter
from dflash.online.prompt_capture import PromptCapture
from dflash.online.store_errors import NotRegistered, StoreFull

WIDTH = 4


class FakeStore:
    """Keeps what is put; `gate` holds puts up, `error` fails them."""

    def __init__(self) -> None:
        self.objects: dict[str, torch.Tensor] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.buffers: list[torch.Tensor] = []
        self.threads: set[int] = set()

    def allocate(self, size: int) -> torch.Tensor:
        self.buffers.append(torch.empty(size, dtype=torch.uint8))
        return self.buffers[-1]

    def release(self, buffer: torch.Tensor) -> None:
        self.buffers.pop()

    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        assert self.gate.wait(10)
        self.threads.add(threading.get_ident())
        if self.error:
            raise self.error
        base = self.buffers[-1]
        for tensor in tensors.values():
            if not base.data_ptr() <= tensor.data_ptr() <= base.data_ptr() + base.nbytes - tensor.nbytes:
                raise NotRegistered("outside")
        self.objects |= {key: tensor.clone() for key, tensor in tensors.items()}

    def close(self) -> None: ...


@dataclass(eq=False)
class FakeRequest:
    """What the plugin uses of SGLang's `Req`."""

    rid: str
    origin_input_ids: list[int]
    return_hidden_states: bool | str = True
    hidden_states: list = field(default_factory=list)
    done: bool = False
    is_retracted: bool = False
    finished_output: bool = False

    def finished(self) -> bool:
        return self.done


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def writer(store):
    writer = CaptureWriter(store, (1, 3), queue_bytes=1 << 20)
    yield writer
    store.gate.set()
    writer.close()


def request(length: int, name: str = "dflash/run/0/a") -> FakeRequest:
    return FakeRequest(name, list(range(length)))


def output(rows: int, start: int = 0, last: bool = False) -> SimpleNamespace:
    states = (torch.arange(rows * WIDTH).view(rows, WIDTH) + start * WIDTH).to(torch.bfloat16)
    return SimpleNamespace(hidden_states=states, last_hidden_states=-states[:, :2] if last else None)


def settled(capture: PromptCapture, req: FakeRequest) -> CaptureRecord:
    """Send the finished request's answer as the streamer would, and read it as a client would."""
    req.done = True
    sent = []
    if capture.hold(req, lambda: sent.append(capture.hold(req, lambda: None))):
        deadline = time.monotonic() + 10
        while not sent and time.monotonic() < deadline:
            capture.release(0.1)
        assert sent == [False]
    assert req.return_hidden_states is True
    return CaptureRecord.from_meta_info({"hidden_states": req.hidden_states})


def test_rows_of_all_chunks_arrive_in_order_under_a_key_that_begins_with_the_request(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(7)
    capture.take(req, output(10), 2, 4, complete=False)  # its rows lie between those of others
    capture.take(req, output(3, start=20), 0, 3, complete=True)
    record = settled(capture, req)
    assert record.layer_ids == (1, 3) and record.last_hidden_states is None
    assert record.features.shape == (7, WIDTH) and record.features.bytes == 7 * WIDTH * 2
    assert record.features.key.startswith("dflash/run/0/a/")
    assert list(store.objects) == [record.features.key]
    expected = torch.cat([output(10).hidden_states[2:6], output(3, start=20).hidden_states])
    assert torch.equal(store.objects[record.features.key], expected)


def test_rows_are_kept_although_the_server_reuses_their_memory(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(3)
    first = output(2)
    capture.take(req, first, 0, 2, complete=False)
    first.hidden_states.fill_(99)
    capture.take(req, output(1), 0, 1, complete=True)
    assert torch.equal(store.objects[settled(capture, req).features.key][:2], output(2).hidden_states)


def test_last_hidden_states_are_stored_only_when_wanted(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=True), request(3)
    capture.take(req, output(3, last=True), 0, 3, complete=True)
    record = settled(capture, req)
    assert set(store.objects) == {record.features.key, record.last_hidden_states.key}
    assert torch.equal(store.objects[record.last_hidden_states.key], -output(3).hidden_states[:, :2])


def test_last_hidden_states_that_the_server_does_not_give_are_a_failure_and_not_an_empty_object(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=True), request(3)
    capture.take(req, output(3, last=False), 0, 3, complete=True)
    with pytest.raises(CaptureFailed, match="0 rows of last_hidden_states were captured for 3 tokens"):
        settled(capture, req)
    assert not store.objects


def test_the_answer_waits_for_the_write_and_the_scheduler_does_not(store, writer):
    store.gate.clear()
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(3)
    started = time.monotonic()
    capture.take(req, output(3), 0, 3, complete=True)
    req.done = True
    sent = []
    assert capture.hold(req, lambda: sent.append(req))
    capture.release()
    assert time.monotonic() - started < 1 and not sent and capture.busy
    store.gate.set()
    while not sent:
        capture.release(0.1)
    assert store.threads and threading.get_ident() not in store.threads
    assert not capture.busy


@pytest.mark.parametrize("error", [StoreFull("the store has no room"), RuntimeError("surprise")])
def test_a_failed_write_fails_that_request_only(store, writer, error):
    capture = PromptCapture(writer, store_last_hidden_states=False)
    store.error, failed = error, request(3)
    capture.take(failed, output(3), 0, 3, complete=True)
    with pytest.raises(CaptureFailed, match=str(error)):
        settled(capture, failed)
    store.error, fine = None, request(3)
    capture.take(fine, output(3), 0, 3, complete=True)
    settled(capture, fine)
    assert (writer.totals.written, writer.totals.failed, writer.totals.tokens) == (1, 1, 3)


def test_a_prompt_of_which_rows_are_missing_fails(writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(9)
    capture.take(req, output(5), 0, 5, complete=True)
    with pytest.raises(CaptureFailed, match="5 rows of features were captured for 9 tokens"):
        settled(capture, req)


def test_a_request_that_is_prefilled_again_starts_anew(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(3)
    capture.take(req, output(2), 0, 2, complete=False)
    req.is_retracted = True
    capture.take(req, output(1), 0, 1, complete=False)
    req.is_retracted = False
    capture.take(req, output(3, start=5), 0, 3, complete=True)
    assert torch.equal(store.objects[settled(capture, req).features.key], output(3, start=5).hidden_states)


def test_an_aborted_request_stores_nothing_and_is_answered_at_once(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(9)
    capture.take(req, output(5), 0, 5, complete=False)
    req.done = True
    capture.take(req, output(4), 0, 4, complete=False)
    assert not capture.hold(req, lambda: None)
    assert not capture.busy and not store.objects


def test_the_same_request_id_never_meets_the_same_key(store, writer):
    capture = PromptCapture(writer, store_last_hidden_states=False)
    for _ in range(2):
        req = request(3)
        capture.take(req, output(3), 0, 3, complete=True)
        settled(capture, req)
    assert len(store.objects) == 2


def test_request_ids_that_name_no_run_get_a_place_of_their_own(store, writer):
    capture, req = PromptCapture(writer, store_last_hidden_states=False), request(1, "4711")
    capture.take(req, output(1), 0, 1, complete=True)
    assert settled(capture, req).features.key.startswith("dflash/adhoc/4711/")


def test_a_rank_without_a_writer_holds_nothing_back_and_asks_for_no_more_rows():
    capture, req = PromptCapture(None, store_last_hidden_states=False), request(3)
    capture.take(req, output(3), 0, 3, complete=True)
    req.done = True
    assert not capture.hold(req, lambda: None) and req.return_hidden_states is False


def test_a_full_queue_holds_the_scheduler_up_and_fails_the_request_in_the_end(store, monkeypatch):
    monkeypatch.setattr(capture_writer, "_FULL_SECONDS", 0.2)
    store.gate.clear()
    writer = CaptureWriter(store, (1, 3), queue_bytes=30)
    capture, requests = PromptCapture(writer, store_last_hidden_states=False), [request(3), request(3)]
    for req in requests:
        capture.take(req, output(3), 0, 3, complete=True)
    assert writer.totals.held_up_seconds >= 0.2
    with pytest.raises(CaptureFailed, match="was full"):
        settled(capture, requests[1])
    store.gate.set()
    settled(capture, requests[0])
    writer.close()


@pytest.mark.parametrize(
    ("meta_info", "words"),
    [
        ({}, "is the plugin active"),
        ({"hidden_states": []}, "is the plugin active"),
        ({"hidden_states": [[[0.5, 1.0]]]}, "is the plugin active"),  # SGLang's own answer
        ({"finish_reason": {"type": "abort", "message": "too long"}}, "too long"),
        ({"hidden_states": [{"dflash_capture": 2}]}, "speaks format 2"),
    ],
)
def test_an_answer_without_a_record_is_a_failure(meta_info, words):
    with pytest.raises(CaptureFailed, match=words):
        CaptureRecord.from_meta_info(meta_info)


def test_settings_survive_the_way_through_the_environment():
    settings = CaptureSettings("10.0.0.1:50051", segment_bytes=5, protocol="rdma", store_last_hidden_states=True)
    assert CaptureSettings.from_environment(settings.environment()) == settings
    assert CaptureSettings.from_environment({}) is None
    for text in ("{", "[]", '{"masters": 1}', "{}"):
        with pytest.raises(ValueError, match="DFLASH_CAPTURE"):
            CaptureSettings.from_environment({"DFLASH_CAPTURE": text})


def proven(report: dict | None) -> dict:
    return {"version": "0.5.23", "internal_states": [{} if report is None else {"dflash_capture": report}]}


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (None, "without the capture plugin"),
        ({"missing_hooks": ["a.b"]}, "finds no a.b"),
        (
            {"missing_hooks": [], "layer_ids": [1], "store_last_hidden_states": False, "store": "m:1"},
            r"layer_ids = \[1\]",
        ),
    ],
)
def test_a_server_without_proof_is_refused(monkeypatch, report, words):
    monkeypatch.setattr("dflash.online.capture_proof.server_info", lambda url: proven(report))
    with pytest.raises(Exception, match=words):
        require_proof("http://s", layer_ids=(1, 3), store="m:1")


def test_prompts_whose_last_token_only_is_wanted_go_sglangs_own_way():
    calls = []
    mode = SimpleNamespace(is_full=lambda: False)
    given = {"hidden_state_offset": 4, "extend_input_len": 3, "store": True, "capture_hidden_mode": mode}
    taken = capture_plugin.take_rows(
        lambda processor, **passed: calls.append(passed) or 5, None, req=request(3), logits_output=None, **given
    )
    assert taken == 5 and calls[0]["capture_hidden_mode"] is mode


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"return_aux_hidden_state_layer_ids": None, "disable_radix_cache": True}, RuntimeError, "layer-ids"),
        (
            {"return_aux_hidden_state_layer_ids": [1], "disable_radix_cache": False},
            RuntimeError,
            "--disable-radix-cache",
        ),
        ({"return_aux_hidden_state_layer_ids": [1], "disable_radix_cache": True}, UserError, "master|Mooncake"),
    ],
)
def test_a_server_that_cannot_capture_ends_while_it_starts(monkeypatch, arguments, error, words):
    monkeypatch.setattr(capture_plugin, "_settings", CaptureSettings("127.0.0.1:1"))  # where nothing listens
    scheduler = SimpleNamespace(ps=SimpleNamespace(attn_tp_rank=0))
    with pytest.raises(error, match=words):
        capture_plugin.start(None, scheduler, SimpleNamespace(**arguments))
    assert capture_plugin._capture is None


ORPHAN = """
import multiprocessing, os, sys, time
from pathlib import Path
from dflash.online.capture_plugin import activate

def main(marks):
    (marks / "pid").write_text(str(os.getpid()))
    while not (marks / "go on").exists():
        time.sleep(0.02)
    try:
        activate()
    finally:
        (marks / "ended").write_text(repr(sys.exc_info()[1]))

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=main, args=(Path(sys.argv[1]),), daemon=True)
    child.start()
    child.join()
"""


def test_a_process_of_a_server_that_was_killed_while_it_began_does_not_stay(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(ORPHAN)
    paths = {"PYTHONPATH": str(Path(dflash.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **CaptureSettings("127.0.0.1:1").environment(), **paths}
    server = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    until((tmp_path / "pid").exists, seconds=60)
    server.kill()
    server.wait()
    (tmp_path / "go on").touch()
    until((tmp_path / "ended").exists, seconds=60)
    assert "the process that started this one ended first" in (tmp_path / "ended").read_text()
