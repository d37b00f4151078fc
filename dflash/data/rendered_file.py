"""Rendered conversations as a file of plain arrays: one process renders, the others of a run read what it rendered.

For N conversations of T tokens in all: `ids` a JSON list of N texts as bytes, `lengths` [N], `truncated` [N],
`tokens` [T] and `mask` [T] in bits, conversation after conversation.
"""

import json
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np

from dflash.data.template import Rendered


def write_rendered(path: Path, items: Sequence[Rendered]) -> None:
    """
    Raises:
        OSError: the file cannot be written.
    """
    ids = json.dumps([item.id for item in items]).encode()
    lengths = np.array([len(item.input_ids) for item in items], dtype=np.int64)
    total = int(lengths.sum())
    tokens = np.fromiter(chain.from_iterable(item.input_ids for item in items), dtype=np.uint32, count=total)
    mask = np.fromiter(chain.from_iterable(item.loss_mask for item in items), dtype=bool, count=total)
    with open(path, "wb") as file:
        np.savez(
            file,
            ids=np.frombuffer(ids, dtype=np.uint8),
            lengths=lengths,
            truncated=np.array([item.truncated for item in items], dtype=bool),
            tokens=tokens,
            mask=np.packbits(mask),
        )


def read_rendered(path: Path) -> list[Rendered]:
    """What `write_rendered` was given.

    Raises:
        OSError: the file cannot be read.
    """
    with np.load(path, allow_pickle=False) as arrays:
        ids = json.loads(arrays["ids"].tobytes())
        ends = [0, *accumulate(arrays["lengths"].tolist())]
        tokens, mask = arrays["tokens"], np.unpackbits(arrays["mask"], count=ends[-1]).astype(bool)
        truncated = arrays["truncated"].tolist()
    known = np.unique(tokens).tolist()
    objects = dict(zip(known, known, strict=True))  # one object for each token id, as `render_all` gives
    return [
        Rendered(name, [objects[t] for t in tokens[start:end].tolist()], mask[start:end].tolist(), cut)
        for name, (start, end), cut in zip(ids, pairwise(ends), truncated, strict=True)
    ]
