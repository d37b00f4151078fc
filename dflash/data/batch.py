"""The tensors of one micro-batch of rows. Shapes: B rows, S tokens of the longest row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from dflash.data.rows import Row


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right. Padding is never supervised, and every token of it is a document of its own."""

    input_ids: torch.Tensor  # [B, S] int64, 0 on padding
    loss_mask: torch.Tensor  # [B, S] bool
    document_start: torch.Tensor  # [B, S] int64; index in the row of the first token of the token's document

    @property
    def positions(self) -> torch.Tensor:
        """[B, S] int64: position of every token in its document."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) - self.document_start

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A copy in page-locked host memory, from which a GPU copies without waiting."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(*(change(getattr(self, field.name)) for field in fields(self)))


def collate(rows: Sequence[Row], *, multiple: int = 1) -> Batch:
    """Stack rows, padded to the longest one and on to a multiple of `multiple` tokens: kernels want few shapes."""
    longest = max(map(len, rows))
    width = longest + -longest % multiple
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    document_start = torch.arange(width).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row.input_ids)
        loss_mask[index, : len(row)] = torch.tensor(row.loss_mask)
        for start, end in zip(row.starts, (*row.starts[1:], len(row)), strict=True):
            document_start[index, start:end] = start
    return Batch(input_ids, loss_mask, document_start)
