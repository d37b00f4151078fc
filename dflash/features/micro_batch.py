"""One micro-batch with its features, prepared in a worker and ready for the device that trains."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dflash.data.batch import Batch, collate
from dflash.data.rows import Row
from dflash.features.source import FeatureSource


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of B rows on the training device. Call `wait` in the thread that uses them, before it does."""

    rows: tuple[Row, ...]
    batch: Batch  # [B, S]
    features: torch.Tensor  # [B, S, n*E]
    arrived: torch.cuda.Event | None = None  # recorded behind the copies; None where nothing is asynchronous

    def wait(self) -> "MicroBatch":
        """Make the current CUDA stream, not the host, wait for the copies; at once on other devices. Returns itself."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.features.device)
            stream.wait_event(self.arrived)
            # The tensors were allocated on the copying stream, which would reuse their memory as soon as they are
            # dropped here, while this stream may still be reading it.
            for tensor in (self.features, *vars(self.batch).values()):
                tensor.record_stream(stream)
        return self


class MicroBatchPreparer:
    """`prepare` for a `Prefetcher`: rows to a `MicroBatch` on `device`, padded to a multiple of `multiple` tokens.

    On CUDA the work goes to a stream of its own: pinned memory, copies that the host does not wait for, and the
    target's forward where features are computed in process. That has not been run yet: no machine here has a GPU.
    """

    def __init__(self, source: FeatureSource, device: torch.device | str, *, multiple: int = 1) -> None:
        self._source, self._device, self._multiple = source, torch.device(device), multiple
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
            # The target's weights were brought to the device on the current stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def __call__(self, rows: Sequence[Row]) -> MicroBatch:
        batch = collate(rows, multiple=self._multiple)
        length = batch.input_ids.shape[1]
        if self._stream is None:
            features = self._source(rows, length=length).to(self._device)
            return MicroBatch(tuple(rows), batch.to(self._device), features)
        with torch.cuda.stream(self._stream):
            features = self._source(rows, length=length)
            if features.device.type == "cpu":
                features = features.pin_memory()
            features = features.to(self._device, non_blocking=True)
            batch = batch.pin_memory().to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return MicroBatch(tuple(rows), batch, features, arrived)
