"""Preparing the next items in a worker thread while the current one is used."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Prefetcher(Generic[T, R]):
    """Iterates `prepare(item)` over `items`, in order, with at most `depth` results in preparation or waiting.

    One worker thread takes the items and prepares them; depth 0 does without it and prepares in the caller. An
    exception of the worker is raised in the consumer, with the worker's own traceback, once the results before it were
    taken.
    Use it as a context manager, or call `close`, so that the thread ends with its consumer.
    """

    def __init__(self, prepare: Callable[[T], R], items: Iterable[T], depth: int) -> None:
        if depth < 0:
            raise ValueError(f"depth {depth} is negative")
        self.wait_seconds = 0.0  # time the consumer spent waiting for results
        self._prepare, self._items, self._depth = prepare, iter(items), depth
        self._ready: deque[R] = deque()
        self._error: BaseException | None = None
        self._exhausted = self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if depth:
            # A daemon, so that a consumer that forgets to close cannot keep the process alive.
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        started = time.perf_counter()
        try:
            return self._take() if self._thread else self._prepare_next()
        finally:
            self.wait_seconds += time.perf_counter() - started

    def close(self) -> None:
        """End the worker thread, after the item it is at; what was prepared is dropped. May be called twice."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def __enter__(self) -> "Prefetcher[T, R]":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def _prepare_next(self) -> R:
        if self._closed:
            raise RuntimeError("the prefetcher is closed")
        return self._call(next(self._items))

    def _take(self) -> R:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._exhausted or self._error or self._closed)
            if self._closed:
                raise RuntimeError("the prefetcher is closed")
            if self._ready:
                result = self._ready.popleft()
                self._changed.notify_all()
                return result
            if self._error:
                raise self._error  # its traceback begins where the worker failed
            raise StopIteration

    def _work(self) -> None:
        try:
            while self._wait_for_room():
                try:
                    item = next(self._items)
                except StopIteration:
                    break
                result = self._call(item)
                with self._changed:
                    self._ready.append(result)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._exhausted = True
                self._changed.notify_all()

    def _call(self, item: T) -> R:
        try:
            return self._prepare(item)
        except StopIteration as error:  # would look like the regular end, and the rest be lost in silence
            raise RuntimeError("prepare raised StopIteration") from error

    def _wait_for_room(self) -> bool:
        """Until there is room for one more result; False when the prefetcher was closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._depth or self._closed)
            return not self._closed
