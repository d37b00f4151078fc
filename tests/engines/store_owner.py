"""A process that lends memory to the store and puts what it is told: `python store_owner.py MASTER SEGMENT_BYTES`.

Each line of stdin is "KEY SIZE FILL"; the answer is "ok" or the name of the error.
"""

import sys

from dflash.online.store import MooncakeStore, StoreSettings
from dflash.online.store_errors import StoreError


def main() -> None:
    master, segment = sys.argv[1:]
    with MooncakeStore.connect(StoreSettings(master, segment_bytes=int(segment))) as store:
        buffer = store.allocate(8 << 20)
        print("ready", flush=True)
        for line in sys.stdin:
            key, size, fill = line.split()
            try:
                store.put({key: buffer[: int(size)].fill_(int(fill))})
                print("ok", flush=True)
            except StoreError as error:
                print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main()
