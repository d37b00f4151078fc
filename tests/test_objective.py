"""The objective equals the obvious computation, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from dflash.blocks.plan import plan_blocks
from dflash.objectives import head as head_module
from dflash.objectives.cross_entropy import decayed_cross_entropy


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (2, 30), generator=generator)
    loss_mask = torch.rand(2, 30, generator=generator) < 0.8
    plan = plan_blocks(ids, loss_mask, block_size=5, num_anchors=8, gamma=3.0, generator=generator)
    hidden = torch.randn(2, 40, 16, generator=generator)
    return plan, hidden, torch.randn(50, 16, generator=generator)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_loss_and_gradient_equal_full_logits(case, chunk, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_ROWS", chunk)
    plan, hidden, head = case
    mine = hidden.clone().requires_grad_()
    total, statistics = decayed_cross_entropy(mine, head, plan)
    (total / statistics.weight).backward()

    reference = hidden.clone().requires_grad_()
    losses = F.cross_entropy((reference @ head.T).flatten(0, 1), plan.labels.flatten(), reduction="none")
    expected = (losses * plan.weights.flatten()).sum() / plan.weights.sum()
    expected.backward()
    torch.testing.assert_close(total / statistics.weight, expected)
    torch.testing.assert_close(mine.grad, reference.grad, atol=1e-6, rtol=1e-5)


def test_statistics_count_slots_and_unbroken_runs(case):
    plan, hidden, head = case
    _, statistics = decayed_cross_entropy(hidden, head, plan)
    right = (hidden @ head.T).argmax(-1).view(plan.labels.shape) == plan.labels
    supervised = plan.weights > 0
    correct, prefix = torch.zeros(5), torch.zeros(5)
    for b in range(2):
        for n in range(plan.num_anchors):
            alive = True
            for k in range(1, 5):
                hit = bool(right[b, n, k] and supervised[b, n, k])
                correct[k] += hit
                alive = alive and hit
                prefix[k] += alive
    assert torch.equal(statistics.correct, correct)
    assert torch.equal(statistics.prefix, prefix)
    assert torch.equal(statistics.count, supervised.float().sum((0, 1)))


def test_statistics_pool_by_addition(case):
    plan, hidden, head = case
    _, once = decayed_cross_entropy(hidden, head, plan)
    twice = once + once
    assert twice.summary()["loss"] == pytest.approx(once.summary()["loss"])
    assert twice.summary()["slot_count"] == [2 * c for c in once.summary()["slot_count"]]


def test_rows_of_weight_zero_never_reach_the_head(case, monkeypatch):
    plan, hidden, head = case
    seen = []
    original = head_module.ChunkedCrossEntropy.apply
    monkeypatch.setattr(
        head_module.ChunkedCrossEntropy, "apply", lambda h, *rest: (seen.append(h.shape[0]), original(h, *rest))[1]
    )
    decayed_cross_entropy(hidden, head, plan)
    assert seen == [int((plan.weights > 0).sum())]
