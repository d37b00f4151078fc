"""A client of the Mooncake store, in which features travel from the servers to the trainer ranks.

Also imported inside the servers' own Python environment: nothing but torch, mooncake and the standard library here.
Behaviour and return codes were measured with mooncake 0.3.13.post1 over TCP; RDMA has not been run yet.
"""

import http.client
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dflash.errors import UserError
from dflash.online.store_errors import (
    INSTALL,
    KeyTaken,
    MasterDown,
    MissingKey,
    NotRegistered,
    OwnerLost,
    StoreError,
    StoreFull,
)

KEY_ROOT = "dflash"
_LOCAL_BUFFER_BYTES = 16 << 20  # mooncake's own scratch; our data goes through registered buffers
_PROBE_EVERY = 0.5  # seconds for which a master that answered counts as alive
_BAD_ARGUMENT = -600
_NO_SUCH_OBJECT = -704
_FAILURES: dict[int, tuple[type[StoreError], str]] = {
    -200: (StoreFull, "the store has no room: raise its size, or keep fewer samples in flight"),
    _NO_SUCH_OBJECT: (MissingKey, "nothing is stored under this key"),
    -800: (OwnerLost, "the process that holds the memory does not answer"),
    -900: (MasterDown, "the Mooncake master does not answer"),
}


@dataclass(frozen=True)
class StoreSettings:
    """Where the store is and what this process adds to it. Addresses are "host:port"."""

    master: str
    metrics: str | None = None  # the master's HTTP port, for `usage`
    host: str = "127.0.0.1"  # address under which the other clients reach this process
    segment_bytes: int = 0  # memory lent to the store; 0 for a pure reader
    protocol: str = "tcp"  # or "rdma"
    devices: str = ""  # RDMA devices, separated by commas


@dataclass(frozen=True)
class Usage:
    """How full the store is, over all segments."""

    used_bytes: int
    capacity_bytes: int
    objects: int


def key_prefix(*parts: str) -> str:
    """The common start of all keys of a generation (one run of the trainer), or of one rank of it."""
    if not all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts):
        raise ValueError(f"parts of a key are letters, digits and underscores, not {parts}")
    return "/".join((KEY_ROOT, *parts, ""))


class MooncakeStore:
    """One client: puts and gets tensors of registered memory. May be used from several threads.

    Objects are hard-pinned, since Mooncake silently evicts others when it fills up, so each has to be removed by its
    reader; `sweep` removes those whose reader is gone.
    """

    def __init__(self, client, replicate, settings: StoreSettings) -> None:
        """Use `connect`."""
        self.settings = settings
        self._client, self._replicate = client, replicate
        self._buffers: dict[int, torch.Tensor] = {}  # by address; keeps registered memory alive
        self._seen_alive = time.monotonic()
        # Calls after close crash the process inside Mooncake, so close waits for calls and refuses later ones.
        self._gate = _Gate()

    @classmethod
    def connect(cls, settings: StoreSettings) -> "MooncakeStore":
        """Join the store.

        Raises:
            UserError: mooncake is not usable here, the master cannot be reached or refuses the client.
        """
        client_type, replicate = _import_mooncake()
        if not reachable(settings.master):  # mooncake itself would try for 90 s
            raise UserError(
                f"No Mooncake master answers at {settings.master!r}: start one (mooncake_master --rpc_port=...) or "
                "correct the address."
            )
        client = client_type()
        code = client.setup(
            settings.host, "P2PHANDSHAKE", settings.segment_bytes, _LOCAL_BUFFER_BYTES,
            settings.protocol, settings.devices, settings.master,
        )  # fmt: skip
        if code:
            raise UserError(
                f"Mooncake could not join the store at {settings.master!r} over {settings.protocol!r} as "
                f"{settings.host!r} with a segment of {settings.segment_bytes} bytes (code {code}): check the "
                "protocol, the address and the free memory."
            )
        replicate.with_hard_pin = True
        replicate.replica_num = 1
        return cls(client, replicate, settings)

    def allocate(self, size: int) -> torch.Tensor:
        """[size] uint8 of registered host memory, page-locked where there is CUDA; registered until `release`.

        Registering is slow (it pins pages for the network card): allocate once and reuse.
        """
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        with self._gate:
            code = self._client.register_buffer(buffer.data_ptr(), size)
            if code:
                raise StoreError(f"Mooncake could not register {size} bytes (code {code}).")
            self._buffers[buffer.data_ptr()] = buffer
        return buffer

    def release(self, buffer: torch.Tensor) -> None:
        """Unregister what `allocate` gave; its views must not be used in calls any more."""
        with self._gate:
            if self._buffers.pop(buffer.data_ptr(), None) is None:
                raise NotRegistered("only a buffer that `allocate` gave can be released")
            self._client.unregister_buffer(buffer.data_ptr())

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store every tensor (contiguous, inside registered memory) under its key; all of them, or none.

        Raises:
            KeyTaken, StoreFull, OwnerLost, MasterDown, NotRegistered: nothing of this call stays stored.
        """
        with self._gate:
            keys, pointers, sizes = self._locate(tensors)
            self._require_master()
            taken = [key for key, exists in zip(keys, self._client.batch_is_exist(keys), strict=True) if exists == 1]
            if taken:
                raise KeyTaken(f"{_name(taken)} is already stored: every object needs a fresh key.", taken)
            codes = self._client.batch_put_from(keys, pointers, sizes, self._replicate)
            if any(codes):
                self._client.batch_remove([key for key, code in zip(keys, codes, strict=True) if not code], True)
        _check("put", keys, codes)

    def get(self, into: Mapping[str, torch.Tensor]) -> None:
        """Read every object into its tensor (contiguous, inside registered memory, of the object's size).

        Raises:
            MissingKey, OwnerLost, MasterDown, NotRegistered: for at least one key; no tensor's content counts.
            StoreError: an object has another size.
        """
        with self._gate:
            keys, pointers, sizes = self._locate(into)
            self._require_master()
            codes = self._client.batch_get_into(keys, pointers, sizes)
            # An object that does not fit gives the code of any bad argument: ask for its size, to say what is wrong.
            found = [self._client.get_size(key) if code == _BAD_ARGUMENT else code for key, code in zip(keys, codes)]
        _check("get", keys, [min(code, 0) for code in found])
        for key, expected, size in zip(keys, sizes, found, strict=True):
            if size != expected:
                raise StoreError(f"Object {key!r} has {size} bytes, {expected} were expected.", [key])
        _check("get", keys, [min(code, 0) for code in codes])

    def remove(self, keys: Sequence[str]) -> int:
        """Remove objects, even those that were just read; returns how many there were.

        Raises:
            MasterDown: it cannot be known what was removed; with the master everything stored is lost, too.
        """
        keys = list(keys)
        with self._gate:
            self._require_master()
            codes = self._client.batch_remove(keys, True) if keys else []
        _check("remove", keys, [0 if code == _NO_SUCH_OBJECT else code for code in codes])
        return sum(code == 0 for code in codes)

    def sweep(self, prefix: str) -> int:
        """Remove every object whose key starts with what `key_prefix` gave; returns how many there were."""
        if not re.fullmatch(rf"{KEY_ROOT}/(\w+/)+", prefix):
            raise ValueError(f"{prefix!r} is no key prefix")
        with self._gate:
            self._require_master()
            count = self._client.remove_by_regex(f"^{prefix}", True)
        _check("sweep", [prefix], [min(count, 0)])
        return count

    def usage(self) -> Usage | None:
        """Usage as the master sees it; None where `StoreSettings.metrics` does not say whom to ask.

        Raises:
            StoreError: the master's metrics port does not answer, or not as it should.
        """
        return None if self.settings.metrics is None else usage(self.settings.metrics)

    def keys(self) -> list[str]:
        """Keys of all objects, of whichever software; none where `StoreSettings.metrics` does not say whom to ask.

        Raises:
            MasterDown: the master's metrics port does not answer.
        """
        return [] if self.settings.metrics is None else _ask(self.settings.metrics, "get_all_keys").split()

    def alive(self) -> bool:
        """Whether the master accepts connections right now; Mooncake's own health check notices only after seconds."""
        return reachable(self.settings.master)

    def close(self) -> None:
        """Leave the store, with the objects that lie in this process's segment. May be called twice."""
        if self._gate.close():
            for pointer in self._buffers:
                self._client.unregister_buffer(pointer)
            self._client.close()
            self._buffers.clear()

    def __enter__(self) -> "MooncakeStore":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def _locate(self, tensors: Mapping[str, torch.Tensor]) -> tuple[list[str], list[int], list[int]]:
        """Keys, addresses and sizes of tensors that are fit to be read and written by the network."""
        if not tensors:
            raise ValueError("no tensors were given")
        for key, tensor in tensors.items():
            if not tensor.is_contiguous() or not tensor.numel():
                raise ValueError(f"the tensor of {key!r} is empty or not contiguous")
            start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            buffers = list(self._buffers.items())
            if not any(base <= start and end <= base + buffer.nbytes for base, buffer in buffers):
                raise NotRegistered(f"The tensor of {key!r} lies outside registered memory: use `allocate`.", [key])
        return list(tensors), [t.data_ptr() for t in tensors.values()], [t.nbytes for t in tensors.values()]

    def _require_master(self) -> None:
        """Notice a dead master within milliseconds; Mooncake's calls would block for more than 4 s first."""
        if time.monotonic() - self._seen_alive < _PROBE_EVERY:
            return
        if not reachable(self.settings.master):
            raise MasterDown(f"The Mooncake master at {self.settings.master!r} does not answer.")
        self._seen_alive = time.monotonic()


class _Gate:
    """Lets any number of calls in until it is closed; closing waits for those that are inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            if self._closed:
                raise StoreError("This client of the store is closed.")
            self._inside += 1

    def __exit__(self, *_exception) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> bool:
        """Whether this call closed it."""
        with self._changed:
            was_open, self._closed = not self._closed, True
            self._changed.wait_for(lambda: self._inside == 0)
            return was_open


def reachable(address: str, timeout: float = 1.0) -> bool:
    """Whether something accepts TCP connections at "host:port".

    Raises:
        UserError: this is no such address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{address!r} is not of the form host:port: write it like 127.0.0.1:50051.")
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except OSError:
        return False
    return True


def usage(metrics: str) -> Usage:
    """Usage from a master's HTTP port ("host:port"); see `MooncakeStore.usage`."""
    text = _ask(metrics, "metrics")
    values = dict(re.findall(r"^(master_\w+) (\d+)$", text, re.MULTILINE))
    try:
        return Usage(*(int(values[f"master_{n}"]) for n in ("allocated_bytes", "total_capacity_bytes", "key_count")))
    except KeyError as error:
        raise StoreError(f"The Mooncake master's metrics at {metrics!r} do not tell {error.args[0]}.") from error


def _ask(metrics: str, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{metrics}/{path}", timeout=2) as response:
            return response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:  # the latter: it died in the middle of the answer
        raise MasterDown(f"The Mooncake master's metrics at {metrics!r} cannot be read: {error!r}.") from error


def _import_mooncake():
    # Its log goes to stderr, dozens of lines for each client; what it reports as an error is raised here anyway.
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    try:
        from mooncake.store import MooncakeDistributedStore, ReplicateConfig
    except ImportError as error:  # not installed, or a shared library of the system is missing
        raise UserError(f"Mooncake cannot be used here ({error}): {INSTALL}.") from error
    return MooncakeDistributedStore, ReplicateConfig()


def _check(action: str, keys: Sequence[str], codes: Sequence[int]) -> None:
    """Raise for codes that are not 0. The worst one decides: a dead master explains everything else."""
    failed: dict[int, list[str]] = {}
    for key, code in zip(keys, codes, strict=True):
        if code:
            failed.setdefault(code, []).append(key)
    if failed:
        code = min(failed)
        kind, reason = _FAILURES.get(code, (StoreError, f"Mooncake's code is {code}"))
        raise kind(f"Could not {action} {_name(failed[code])}: {reason}.", failed[code])


def _name(keys: Sequence[str]) -> str:
    return f"object {keys[0]!r}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
