"""The workbench computes on the device that it names, and names the one that it computes on."""

import pytest
import torch

from dflash.errors import UserError
from workbench.bench import Bench
from workbench.machine import here


@pytest.mark.parametrize(("has_cuda", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_a_bench_takes_cuda_where_there_is_one(monkeypatch, has_cuda, chosen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    assert Bench("any-target").device == chosen


def test_models_are_loaded_on_the_device_and_in_the_dtype_that_were_asked_for(monkeypatch):
    asked = {}
    monkeypatch.setattr("workbench.bench.TargetModel.load", lambda name, **options: asked.update(options))
    Bench("any-target", device="cpu", dtype="float32").target  # noqa: B018  # read for its effect
    assert asked == {"dtype": "float32", "device": "cpu"}


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="'abacus'"):
        Bench("any-target", device="abacus")


def test_a_gpu_is_named_only_where_it_computes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", {"cuda": "NVIDIA First", "cuda:1": "NVIDIA Second"}.__getitem__)
    assert here("cuda") == "NVIDIA First"
    assert here("cuda:1") == "NVIDIA Second"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert here("cpu") == "CPU, 2 threads"
