"""What can go wrong with the feature store, told apart because each calls for another answer."""

from collections.abc import Sequence

INSTALL = (
    "install mooncake-transfer-engine-non-cuda (or, on a machine with CUDA, mooncake-transfer-engine; never both) and "
    "the Debian packages libibverbs1, libcurl4 and libnuma1"
)


class StoreError(Exception):
    """A call to the store failed. `keys` are the objects it failed for, none where it concerns no object."""

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class MissingKey(StoreError):
    """Nothing is stored under the key: never written, already removed, or lost with a master or a segment's owner."""


class StoreFull(StoreError):
    """No segment has room; right after a master's restart also because no owner has mounted its segment again."""


class MasterDown(StoreError):
    """The master does not answer. Clients recover by themselves when it is back, but everything stored is lost."""


class OwnerLost(StoreError):
    """The process whose memory holds the object, or should take it, does not answer: the object is lost."""


class KeyTaken(StoreError):
    """Something is stored under the key already; Mooncake would report success and keep the old bytes."""


class NotRegistered(StoreError):
    """A tensor outside registered memory. Over TCP it would work, over RDMA it would not."""
