"""What a server says about one captured prompt, in the answer's `meta_info["hidden_states"]`, and about itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MARK = "dflash_capture"  # tells our records from the lists of numbers that SGLang itself would return
FORMAT = 1


class CaptureFailed(Exception):
    """The server did not deliver the features of a prompt; the same request may succeed later or elsewhere."""


@dataclass(frozen=True)
class StoredTensor:
    """One object of the store. `shape` is [tokens, width], `dtype` torch's name, such as "bfloat16"."""

    key: str
    shape: tuple[int, int]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class CaptureRecord:
    """A captured prompt. Whoever gets the record has to remove the objects from the store."""

    layer_ids: tuple[int, ...]  # the columns of `features`, as many equal parts side by side
    features: StoredTensor
    last_hidden_states: StoredTensor | None = None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Everything that was stored."""
        return tuple(tensor for tensor in (self.features, self.last_hidden_states) if tensor is not None)

    def to_json(self) -> dict[str, Any]:
        """As it travels in the answer."""
        return {MARK: FORMAT, **asdict(self)}

    @classmethod
    def from_meta_info(cls, meta_info: Mapping[str, Any]) -> "CaptureRecord":
        """The record in the `meta_info` of a server's answer.

        Raises:
            CaptureFailed: the server reports a failure, or returned something else: the plugin is not active in it.
        """
        records = meta_info.get("hidden_states") or []
        record = records[0] if records else None
        if not isinstance(record, Mapping) or MARK not in record:
            reason = (meta_info.get("finish_reason") or {}).get("message")
            raise CaptureFailed(reason or "the answer holds no record of a capture: is the plugin active?")
        if record[MARK] != FORMAT:
            raise CaptureFailed(f"the server's plugin speaks format {record[MARK]}, this version {FORMAT}")
        if "error" in record:
            raise CaptureFailed(record["error"])
        features, last = (
            StoredTensor(**{**part, "shape": tuple(part["shape"])}) if part else None
            for part in (record["features"], record["last_hidden_states"])
        )
        return cls(tuple(record["layer_ids"]), features, last)


def failure(reason: str) -> dict[str, Any]:
    """What travels instead of a record when a capture failed."""
    return {MARK: FORMAT, "error": reason}
