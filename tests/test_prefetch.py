"""The prefetcher: order, bound, errors with their own traceback, and a thread that always ends."""

import itertools
import threading
import time
import traceback

import pytest

from dflash.features.prefetch import Prefetcher

DEPTHS = [0, 1, 3]


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    assert not prefetch_threads()


@pytest.mark.parametrize("depth", DEPTHS)
def test_results_come_in_the_order_of_the_items_whatever_each_one_takes(depth):
    def prepare(number):
        time.sleep(0.004 * (number % 3))
        return number * 10

    with Prefetcher(prepare, range(12), depth) as results:
        assert list(results) == [number * 10 for number in range(12)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_never_more_than_depth_items_are_ahead_of_the_consumer(depth):
    begun = []
    with Prefetcher(begun.append, itertools.count(), depth) as results:
        for taken in range(1, 6):
            next(results)
            deadline = time.monotonic() + 2
            while len(begun) < taken + depth and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)  # time enough for one too many
            assert len(begun) == taken + depth


def test_depth_0_prepares_in_the_callers_thread_and_only_what_is_asked_for():
    prepared = []
    results = Prefetcher(lambda n: prepared.append((n, threading.current_thread())), itertools.count(), 0)
    next(results), next(results)
    assert prepared == [(0, threading.current_thread()), (1, threading.current_thread())]


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_surfaces_after_the_results_before_it_with_the_workers_own_traceback(depth):
    def prepare_or_fail(number):
        if number == 3:
            raise LookupError("shard 3 is gone")
        return number

    with Prefetcher(prepare_or_fail, range(6), depth) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LookupError, match="shard 3 is gone") as caught:
            next(results)
    assert "prepare_or_fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_is_never_taken_for_the_end(depth):
    def stop(_number):
        raise StopIteration

    with Prefetcher(stop, range(3), depth) as results:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="StopIteration"):
                next(results)


def test_an_error_of_the_iterator_of_items_surfaces_too():
    def items():
        yield 1
        raise ValueError("bad sampler")

    with Prefetcher(lambda n: n, items(), 2) as results:
        assert next(results) == 1
        with pytest.raises(ValueError, match="bad sampler"):
            next(results)


def test_close_ends_the_thread_at_once_when_the_queue_is_full_and_nobody_takes():
    results = Prefetcher(lambda n: n, itertools.count(), 2)
    next(results)
    time.sleep(0.05)  # the worker now waits for room
    started = time.monotonic()
    results.close()
    results.close()
    assert time.monotonic() - started < 1 and not prefetch_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(results)


def test_leaving_the_loop_early_or_by_an_exception_ends_the_thread():
    with Prefetcher(lambda n: n, itertools.count(), 2) as results:
        for number in results:
            if number == 3:
                break
    with pytest.raises(KeyError), Prefetcher(lambda n: n, itertools.count(), 2) as results:
        raise KeyError
    assert not prefetch_threads()


def test_waiting_is_measured_in_seconds():
    def slow(number):
        time.sleep(0.03)
        return number

    for depth in DEPTHS:
        with Prefetcher(slow, range(4), depth) as results:
            list(results)
            assert 0.1 < results.wait_seconds < 5, "the consumer does nothing else, so it waits for nearly all of it"
    with Prefetcher(slow, range(4), 2) as results:
        for _ in results:
            time.sleep(0.1)
        assert results.wait_seconds < 0.3, "work of the consumer is no waiting"
