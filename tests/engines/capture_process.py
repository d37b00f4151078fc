"""A capture server without SGLang, in a process of its own: `python capture_process.py MASTER SEGMENT_BYTES`.

It lends memory to the store, and puts there what `online_fakes.features_of` computes. Prints its address.
"""

import sys
import threading
import time

import torch
from online_fakes import FakeServer

from dflash.online.store import MooncakeStore, StoreSettings


class Puts:
    """The store as `FakeServer` uses it: one key, one tensor in ordinary memory."""

    def __init__(self, store: MooncakeStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self._staging = store.allocate(1 << 20)

    def put(self, key: str, tensor: torch.Tensor) -> None:
        with self._lock:
            staged = self._staging[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self._store.put({key: staged.copy_(tensor)})


def answer_after_a_moment(number: int, request: dict) -> str:
    time.sleep(0.02)
    return "answer"


def main() -> None:
    master, segment = sys.argv[1:]
    with MooncakeStore.connect(StoreSettings(master, segment_bytes=int(segment))) as store:
        print(FakeServer(Puts(store), answer_after_a_moment).address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
