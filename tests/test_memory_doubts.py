"""A plan that takes more memory than the device has says so, and names what to lower."""

import pytest

from dflash.config import TrainConfig
from dflash.training import readiness
from dflash.training.estimate import estimate
from dflash.training.memory import MemoryPart

GIB = 2**30


def doubts(monkeypatch, kind, ranks, device, there, host=0):
    from dataclasses import replace

    config = TrainConfig.model_validate({"target": {"name": "t"}, "data": {"train": ["a.jsonl"]}})
    parts = (MemoryPart("activations", device * GIB), MemoryPart("offloaded", host * GIB, on_host=True))
    numbers = replace(estimate(config, None, ranks), memory=parts)
    monkeypatch.setattr(readiness, "memory_of", lambda kind: there)
    return list(readiness.memory_doubts(config, numbers, kind))


def test_more_than_the_device_has_is_doubted_beside_the_micro_batch(monkeypatch):
    (doubt,) = doubts(monkeypatch, "cuda", 1, 77, 24 * GIB)
    assert doubt.fields == ("run.micro_batch_size",)
    assert "77.0 GiB" in doubt.sentence and "24.0 GiB" in doubt.sentence


@pytest.mark.parametrize(("kind", "ranks", "host", "doubted"), [
    ("cpu", 1, 0, 0), ("cpu", 3, 0, 1), ("cuda", 3, 0, 0), ("cpu", 1, 20, 1), ("cuda", 1, 20, 0),
])  # fmt: skip
def test_ranks_share_a_machine_and_its_host_memory_but_not_their_gpus(monkeypatch, kind, ranks, host, doubted):
    assert len(doubts(monkeypatch, kind, ranks, 10, 24 * GIB, host)) == doubted


def test_an_unknown_device_is_not_judged(monkeypatch):
    assert doubts(monkeypatch, "cuda", 1, 1000, None) == []
