"""Features over HTTP and a store: the trainer's order, nothing lost or doubled, whatever servers and store do."""

import itertools
import random
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import waiting
from online_fakes import LAYER_IDS, WIDTH, FakeServer, FakeStore, features_of

from dflash.data.rows import Row
from dflash.errors import UserError
from dflash.features.prefetch import Prefetcher
from dflash.features.source import looking_ahead
from dflash.online import fetcher
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.source import OnlineFeatures
from dflash.online.store import key_prefix, usage
from dflash.online.store_errors import MasterDown, StoreError

until = partial(waiting.until, seconds=5)

PREFIX = key_prefix("run", "0")


def rows(count: int, length: int = 6, first: int = 0) -> list[Row]:
    """Rows of one conversation each, all different."""
    return [
        Row((f"c{n}",), [(n * 31 + place) % 200 + 1 for place in range(length + n % 3)], [True] * (length + n % 3))
        for n in range(first, first + count)
    ]


def portions(all_rows: list[Row], size: int = 2) -> list[list[Row]]:
    return [all_rows[start : start + size] for start in range(0, len(all_rows), size)]


def same(rows: list[Row]) -> list[Row]:
    return rows


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def launch(store):
    """Starts servers that are dead at the end of the test."""
    servers = []

    def start(*behaviours, port: int = 0) -> list[FakeServer]:
        started = [FakeServer(store, behave, port) for behave in behaviours]
        servers.extend(started)
        return started

    yield start
    for server in servers:
        server.die()


@pytest.fixture
def open_source(store):
    """Opens sources that are closed at the end of the test; then no thread and no object may be left."""
    opened = []
    threads = set(threading.enumerate())

    def open_(servers, layout=Layout(LAYER_IDS, WIDTH, torch.bfloat16), gpus=None, **settings) -> OnlineFeatures:
        addresses = [getattr(server, "address", server) for server in servers]
        source = OnlineFeatures(addresses, store, layout, FetchSettings(PREFIX, **settings), gpus=gpus)
        opened.append(source)
        return source

    yield open_
    for source in opened:
        source.close()
    assert {t.name for t in set(threading.enumerate()) - threads if t.name.startswith("feature")} == set()
    assert not store.objects and (store.closed or not opened)


def steadily(*actions: str):
    """The actions in turn, for ever."""
    return lambda number, request: actions[number % len(actions)]


def first(*actions: str):
    """The actions for the first requests, then regular answers."""
    return lambda number, request: actions[number] if number < len(actions) else "answer"


def train(source: OnlineFeatures, items: list[list[Row]], depth: int = 2) -> list[str]:
    """Go through the items as the trainer does, checking every number; the ids in the order of their use."""
    used = []

    def prepare(item: list[Row]):
        return item, source(item)

    with Prefetcher(prepare, looking_ahead(source, items, same), depth) as batches:
        for item, features in batches:
            longest = max(map(len, item))
            assert features.shape == (len(item), longest, WIDTH)
            for row, values in zip(item, features, strict=True):
                assert torch.equal(values[: len(row)], features_of(row.input_ids))
                assert not values[len(row) :].any()
            used += [row.ids[0] for row in item]
    return used


def ids(count: int) -> list[str]:
    return [f"c{n}" for n in range(count)]


@pytest.mark.parametrize("depth", [0, 2])
def test_rows_come_in_the_trainers_order_whatever_the_order_of_the_answers(launch, open_source, store, depth):
    delays = random.Random(0)

    def behave(number, request):
        time.sleep(delays.random() * 0.05)
        return "answer"

    source = open_source(launch(behave, behave), in_flight=8)
    assert train(source, portions(rows(40)), depth) == ids(40)
    assert len(store.removed) == len(set(store.removed)) == 40 and not store.objects


def test_nothing_is_lost_or_used_twice_under_all_faults_at_once(launch, open_source, store):
    faults = ["hang up", "malformed", "no json", "bare", "error record", "short", "busy", "lost"]
    chance = random.Random(1)

    def unreliable(number, request):
        return chance.choice(faults) if chance.random() < 0.35 else "answer"

    servers = launch(unreliable, unreliable, lambda number, request: "die" if number == 9 else "answer")
    store.losing = 3
    source = open_source(servers, in_flight=6)

    assert train(source, portions(rows(60))) == ids(60)

    statistics = source.statistics()
    assert statistics.documents == 60 and statistics.retries >= 10 and statistics.last_trouble
    assert statistics.tokens == sum(map(len, rows(60)))
    rids = [request["rid"] for server in servers for request in server.requests]
    assert len(rids) == len(set(rids)) and all(rid.startswith(PREFIX) for rid in rids)


def test_what_a_dying_server_was_working_on_is_done_by_another_one(launch, open_source):
    def dies(number, request):
        if number == 5:
            return "die"
        time.sleep(0.1)
        return "answer"

    dying, living = launch(dies, lambda number, request: "answer")
    source = open_source([dying, living], in_flight=8)
    assert train(source, portions(rows(30))) == ids(30)
    statistics = {server.address: server for server in source.statistics().servers}
    assert statistics[dying.address].failures >= 1
    assert statistics[dying.address].documents + statistics[living.address].documents == 30


def test_it_waits_for_a_server_that_comes_back_at_its_old_address(launch, open_source, store):
    (server,) = launch(lambda number, request: "die" if number == 3 else "answer")
    source = open_source([server], in_flight=4)
    used = []
    thread = threading.Thread(target=lambda: used.extend(train(source, portions(rows(12)))))
    thread.start()
    until(lambda: source.statistics().servers[0].resting)
    launch(lambda number, request: "answer", port=server.port)
    thread.join(20)
    assert used == ids(12)


def test_a_dead_master_holds_the_trainer_up_until_it_is_back(launch, open_source, store):
    source = open_source(launch(steadily("answer")), in_flight=4)
    store.down = True
    used = []
    thread = threading.Thread(target=lambda: used.extend(train(source, portions(rows(8)))))
    thread.start()
    until(lambda: source.statistics().retries >= 4)
    assert not used and "master does not answer" in source.statistics().last_trouble
    store.objects.clear()
    store.down = False
    thread.join(20)
    assert used == ids(8)


@pytest.mark.parametrize(
    ("action", "reason"), [("refuse", r"HTTP 400: The input \(900 tokens\)"), ("abort", "too long")]
)
def test_a_refused_document_ends_the_run_naming_the_conversation_and_is_not_tried_again(
    launch, open_source, action, reason
):
    servers = launch(*[lambda number, request: action if len(request["input_ids"]) == 99 else "answer"] * 2)
    long = Row(("the long one",), [1] * 99, [True] * 99)
    source = open_source(servers)
    with pytest.raises(UserError, match=rf"'the long one' \(99 tokens\) were refused; .*{reason}.*max_length"):
        train(source, [rows(2), [long]])
    assert sum(len(request["input_ids"]) == 99 for server in servers for request in server.requests) == 1


def test_what_cannot_be_had_for_too_long_ends_the_run_with_the_last_reason(launch, open_source):
    source = open_source(launch(steadily("error record")), patience=0.5)
    with pytest.raises(UserError, match=r"'c0' \(6 tokens\) could not be had in 0.5 s; at last .*StoreFull: no room"):
        source(rows(1))


def test_servers_that_never_existed_are_named(open_source):
    source = open_source(["http://127.0.0.1:9"], patience=0.2)
    with pytest.raises(UserError, match="http://127.0.0.1:9 cannot be reached"):
        source(rows(1))


def test_what_is_no_capture_server_is_told_at_once(launch, open_source):
    source = open_source(launch(steadily("not found")))
    with pytest.raises(UserError, match="HTTP 404: Not Found: give the address of an SGLang server"):
        source(rows(1))


def test_an_error_that_nobody_foresaw_reaches_the_trainer_instead_of_being_tried_again(launch, open_source, store):
    (server,) = launch(steadily("answer"))
    source = open_source([server])
    store.get = lambda into: 1 / 0
    with pytest.raises(ZeroDivisionError):
        source(rows(1))
    assert len(server.requests) == 1 and source._fetcher.buffers.lent == 0


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (Layout((1, 4), WIDTH, torch.bfloat16), r"captures layers \(1, 3\), this run needs \(1, 4\)"),
        (Layout(LAYER_IDS, 16, torch.bfloat16), "captures numbers per token 8, this run needs 16"),
        (Layout(LAYER_IDS, WIDTH, torch.float16), "captures dtype bfloat16, this run needs float16"),
    ],
)
def test_a_server_that_captures_something_else_is_no_server_for_this_run(launch, open_source, layout, complaint):
    source = open_source(launch(steadily("answer")), layout)
    with pytest.raises(UserError, match=complaint):
        source(rows(1))


def test_never_more_in_flight_than_allowed_and_connections_are_kept_alive(launch, open_source):
    def slow(number, request):
        time.sleep(0.02)
        return "answer"

    (server,) = launch(slow)
    source = open_source([server], in_flight=3)
    assert train(source, portions(rows(30), 1)) == ids(30)
    assert server.most == 3 and server.connections <= 3


def test_a_store_that_is_slow_to_read_holds_no_more_than_what_is_in_flight(launch, open_source, store):
    read = store.get

    def slow_get(into):
        time.sleep(0.05)
        read(into)

    store.get = slow_get
    source = open_source(launch(steadily("answer")), in_flight=4)
    assert train(source, portions(rows(30), 1)) == ids(30)
    assert store.most <= 4


def test_a_document_goes_to_another_server_after_the_one_that_failed_it(launch, open_source):
    failing, working = launch(steadily("error record"), steadily("answer"))
    source = open_source([failing, working], in_flight=4)
    assert train(source, portions(rows(20))) == ids(20)
    asked = [tuple(request["input_ids"]) for request in failing.requests]
    assert 0 < len(asked) == len(set(asked))


def test_a_proxy_for_the_outside_world_is_not_asked_for_the_way_to_the_servers(launch, open_source, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert open_source(launch(steadily("answer")), patience=0.5)(rows(1)).shape == (1, 6, WIDTH)


def test_a_slow_server_is_asked_less_than_a_quick_one(launch, open_source):
    def slow(number, request):
        time.sleep(0.2)
        return "answer"

    def quick(number, request):
        time.sleep(0.01)
        return "answer"

    slow_one, quick_one = launch(slow, quick)
    source = open_source([slow_one, quick_one], in_flight=4)
    assert train(source, portions(rows(40))) == ids(40)
    assert len(quick_one.requests) > 2 * len(slow_one.requests) > 0


def test_features_are_asked_for_before_they_are_needed_but_not_without_bound(launch, open_source):
    (server,) = launch(steadily("answer"))
    source = open_source([server], in_flight=3)
    items = looking_ahead(source, iter(portions(rows(20))), same)
    next(items)
    until(lambda: source.statistics().ready == 6)
    assert len(server.requests) == 6
    next(items)  # the first one was never used, so there is no room for more
    time.sleep(0.1)
    assert len(server.requests) == 6
    items.close()


def test_each_document_of_a_packed_row_is_captured_on_its_own(launch, open_source):
    (server,) = launch(steadily("answer"))
    packed = Row(("a", "b", "c"), [5, 6, 7, 8, 9, 10], [True] * 6, (0, 3, 5))
    features = open_source([server], in_flight=1)([packed], length=8)
    expected = torch.cat([features_of([5, 6, 7]), features_of([8, 9]), features_of([10]), torch.zeros(2, WIDTH)])
    assert torch.equal(features[0], expected.to(torch.bfloat16))
    assert sorted(request["input_ids"] for request in server.requests) == [[5, 6, 7], [8, 9], [10]]


def test_rows_that_nobody_announced_can_be_asked_for_in_between(launch, open_source):
    source = open_source(launch(steadily("answer")), in_flight=4)
    validation, seen = rows(3, first=500), []
    items = looking_ahead(source, portions(rows(12)), same)
    for item in items:
        for row, values in zip((*item, *validation), (*source(item), *source(validation)), strict=True):
            assert torch.equal(values[: len(row)], features_of(row.input_ids))
        seen += [row.ids[0] for row in item]
    assert seen == ids(12)


def test_a_row_that_comes_twice_within_the_lookahead_is_served_twice(launch, open_source):
    (server,) = launch(steadily("answer"))
    source = open_source([server], in_flight=8)
    twice = rows(3)
    assert train(source, portions([*twice, *twice], 1)) == [*ids(3), *ids(3)]
    assert len(server.requests) == 6


def test_a_consumer_that_stops_early_leaves_no_memory_lent_and_the_source_goes_on(launch, open_source, store):
    (server,) = launch(lambda number, request: "late" if number > 4 else "answer")
    source = open_source([server], in_flight=8)
    items = looking_ahead(source, itertools.cycle(portions(rows(20))), same)
    source(next(items))
    items.close()
    until(lambda: source.statistics().in_flight == source.statistics().queued == source.statistics().ready == 0)
    until(lambda: source._fetcher.buffers.lent == 0)
    server.behave = steadily("answer")
    assert train(source, portions(rows(6))) == ids(6)


def test_memory_is_registered_for_the_documents_ahead_and_used_again(launch, open_source):
    source = open_source(launch(steadily("answer")), in_flight=2)
    assert train(source, portions(rows(60), 1)) == ids(60)
    buffers = source._fetcher.buffers
    assert buffers.allocated_bytes <= (2 * 2 + 1) * (1 << 16) and buffers.lent == 0


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.3])
def test_closing_at_any_moment_ends_a_waiting_call_and_leaves_nothing_behind(launch, open_source, store, moment):
    (server,) = launch(steadily("answer", "late", "hang up", "lost"))
    source = open_source([server], in_flight=8)
    problems = []

    def use() -> None:
        try:
            for item in looking_ahead(source, itertools.cycle(portions(rows(20))), same):
                source(item)
        except RuntimeError as error:
            problems.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    time.sleep(moment)
    started = time.monotonic()
    source.close()
    source.close()
    thread.join(5)
    assert not thread.is_alive() and time.monotonic() - started < 3
    assert problems == ["the source of features is closed"]
    assert store.closed
    until(lambda: server.now == 0)
    assert not store.objects
    with pytest.raises(RuntimeError, match="closed"):
        source(rows(1))


def test_closing_does_not_wait_for_servers_that_hang(launch, open_source, monkeypatch):
    monkeypatch.setattr(fetcher, "_DRAIN_SECONDS", 0.1)
    hanging = threading.Event()
    source = open_source(launch(lambda number, request: "hang up" if hanging.wait(10) else "answer"))
    items = looking_ahead(source, portions(rows(4)), same)
    next(items)
    until(lambda: source.statistics().in_flight == 4)
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 1.5
    hanging.set()


def test_a_fault_of_the_fetcher_itself_ends_the_calls_that_wait(launch, open_source, monkeypatch):
    def fail(self):
        raise OSError("out of file descriptors, say")

    gate = threading.Event()
    source = open_source(launch(lambda number, request: "answer" if gate.wait(10) else "answer"))
    monkeypatch.setattr(fetcher, "_DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(fetcher.Fetcher, "_sweep_late", fail)
    monkeypatch.setattr(fetcher, "_LOOK_EVERY", 0.05)
    with pytest.raises(OSError, match="file descriptors"):
        until(lambda: source(rows(1)) is None, seconds=10)
    with pytest.raises(RuntimeError, match="closed"):
        source(rows(1))
    gate.set()


def test_what_comes_after_its_time_is_asked_for_again_and_swept(launch, open_source, store, monkeypatch):
    monkeypatch.setattr(fetcher, "_LATE_SECONDS", 0.8)
    monkeypatch.setattr(fetcher, "_LOOK_EVERY", 0.05)
    (server,) = launch(first("late"))
    source = open_source([server], answer_seconds=0.2)
    assert source(rows(1)).shape == (1, 6, WIDTH)
    assert len(server.requests) == 2 and "did not answer in time" in source.statistics().last_trouble
    until(lambda: len(store.objects) == 1)  # the late answer's
    until(lambda: not store.objects)


def test_statistics_tell_who_waits_for_whom(launch, open_source):
    gate = threading.Event()
    (server,) = launch(lambda number, request: "answer" if gate.wait(10) else "answer")
    source = open_source([server], in_flight=3, gpus={f"{server.address}/": 2})
    items = looking_ahead(source, portions(rows(8), 1), same)
    item = next(items)
    until(lambda: source.statistics().in_flight == 3)
    threading.Timer(0.3, gate.set).start()
    source(item)
    statistics = source.statistics()
    assert statistics.wait_seconds >= 0.2 and statistics.waited > 0.5  # the trainer waited for the server
    (one,) = statistics.servers
    assert one.address == server.address and one.gpus == 2 and one.busy > 0.5 and 1 < one.requests <= 3
    assert statistics.in_flight_limit == 3
    until(lambda: source.statistics().ready == 5)
    assert source.statistics().bytes == sum(map(len, rows(6))) * WIDTH * 2
    time.sleep(0.1)
    idle = source.statistics()  # the trainer does not ask for more: servers wait
    assert 0.1 <= idle.seconds < 5
    assert idle.tokens_per_s == idle.bytes_per_s == idle.waited == idle.reading == 0
    assert idle.servers[0].busy == idle.servers[0].requests == idle.servers[0].tokens_per_s == 0
    items.close()


def test_rates_are_those_of_the_window(launch, open_source):
    (server,) = launch(steadily("answer"))
    source = open_source([server])
    train(source, portions(rows(10)))
    source.statistics()
    time.sleep(0.2)
    train(source, portions(rows(4)))
    found = source.statistics()
    tokens = sum(map(len, rows(4)))
    assert found.tokens_per_s * found.seconds == pytest.approx(tokens)
    assert found.bytes_per_s * found.seconds == pytest.approx(tokens * WIDTH * 2)
    assert found.servers[0].tokens_per_s == pytest.approx(found.tokens_per_s)
    assert found.documents == 14 and found.seconds >= 0.2 and 0 < found.reading < 1


def test_usage_of_the_store_is_told_and_a_full_store_is_counted(launch, store, open_source):
    (server,) = launch(first("error record", "error record", "lost"))
    source = open_source([server])
    until(lambda: source.statistics().store_capacity_bytes == 1 << 20)
    train(source, portions(rows(4)))
    found = source.statistics()
    assert found.store_full == 2 and found.retries == 3  # what was lost is no matter of room
    assert found.store_used_bytes is not None


def test_a_store_whose_usage_nobody_can_tell_serves_all_the_same(launch, store, open_source, monkeypatch):
    def fail():
        raise StoreError("no metrics")

    monkeypatch.setattr(store, "usage", fail)
    source = open_source(launch(steadily("answer")))
    assert train(source, portions(rows(4))) == [row.ids[0] for row in rows(4)]
    assert source.statistics().store_used_bytes is source.statistics().store_capacity_bytes is None


def test_a_master_that_dies_while_it_tells_the_usage_ends_no_run(launch, store, open_source, monkeypatch):
    class CutOff(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "9000")
            self.end_headers()
            self.wfile.write(b"master_allocated_bytes 1\n")

        def log_message(self, *_):
            pass

    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), CutOff) as metrics:
        threading.Thread(target=metrics.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(store, "usage", lambda: usage(f"127.0.0.1:{metrics.server_port}"))
        source = open_source(launch(steadily("answer")))
        until(lambda: asked)
        assert train(source, portions(rows(4))) == [row.ids[0] for row in rows(4)]
        assert source.statistics().store_used_bytes is None
        with pytest.raises(MasterDown, match="cannot be read: IncompleteRead"):
            store.usage()
        metrics.shutdown()


@pytest.mark.parametrize(
    ("addresses", "complaint"),
    [
        ([], "at least one server"),
        (["localhost:1"], "no http address"),
        (["http://a:1", "http://a:1/"], "listed twice"),
    ],
)
def test_bad_server_lists_are_refused(store, addresses, complaint):
    with pytest.raises(UserError, match=complaint):
        OnlineFeatures(addresses, store, Layout(LAYER_IDS, WIDTH, torch.bfloat16), FetchSettings(PREFIX))
