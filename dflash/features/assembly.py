"""Document features to rows. Shapes: B rows, S tokens, n captured layers, E hidden size of the target."""

from collections.abc import Iterable, Sequence

import torch

from dflash.data.rows import Row


def assemble(
    rows: Sequence[Row], documents: Iterable[torch.Tensor], length: int | None = None, *, pin_memory: bool = False
) -> torch.Tensor:
    """[B, S, n*E] from the [s, n*E] features of every document of the rows, in order; zeros on padding.

    S is the longest row, or `length`, for batches that are padded further. `pin_memory` is for documents on the CPU.
    A document is done with when the next one is asked for.
    """
    length = length or max(map(len, rows))
    remaining = iter(documents)
    features: torch.Tensor | None = None
    for index, row in enumerate(rows):
        for start in row.starts:
            document = next(remaining)
            if features is None:
                features = document.new_zeros(len(rows), length, document.shape[1], pin_memory=pin_memory)
            features[index, start : start + len(document)] = document
    return features
