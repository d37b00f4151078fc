"""A softmax estimated from candidates: exact where they are all tokens, right on average where they are not."""

import pytest
import torch
import torch.nn.functional as F

from dflash.errors import UserError
from dflash.objectives.candidates import CandidateSampler, candidate_sampler, frequent_tokens
from dflash.objectives.head import weighted_cross_entropy

VOCABULARY = 40


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 8, generator=generator)
    head = torch.randn(VOCABULARY, 8, generator=generator)
    labels = torch.randint(0, VOCABULARY, (30,), generator=generator)
    return hidden, head, labels, torch.rand(30, generator=generator)


def by_hand(hidden, head, labels, weights, candidates):
    """One row at a time: the label, and every other candidate as often as it stands for a token."""
    losses = []
    for h, label in zip(hidden, labels.tolist(), strict=True):
        terms = [h @ head[label]]
        for token, log_count in zip(candidates.ids.tolist(), candidates.log_count, strict=True):
            if token != label:
                terms.append(h @ head[token] + log_count)
        losses.append(torch.stack(terms).logsumexp(0) - h @ head[label])
    return torch.stack(losses)


@pytest.mark.parametrize("frequent, drawn", [(5, 4), (12, 0), (0, 6)])
def test_loss_and_gradient_equal_the_sum_by_hand(rows, frequent, drawn):
    hidden, head, labels, weights = rows
    sampler = CandidateSampler(torch.arange(frequent), VOCABULARY, drawn)
    candidates = sampler.draw(torch.Generator().manual_seed(1))
    mine, reference = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    total, losses, _ = weighted_cross_entropy(mine, head, labels, weights, candidates)
    total.backward()
    expected = by_hand(reference, head, labels, weights, candidates)
    (expected * weights).sum().backward()
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(mine.grad, reference.grad, atol=1e-5, rtol=1e-4)


def test_all_tokens_as_candidates_give_the_exact_loss(rows):
    hidden, head, labels, weights = rows
    candidates = CandidateSampler(torch.arange(VOCABULARY), VOCABULARY, 7).draw()
    total, losses, correct = weighted_cross_entropy(hidden, head, labels, weights, candidates)
    torch.testing.assert_close(losses, F.cross_entropy(hidden @ head.T, labels, reduction="none"))
    assert torch.equal(correct, (hidden @ head.T).argmax(-1) == labels)


def test_the_softmax_sum_is_right_on_average(rows):
    hidden, head, labels, weights = rows
    sampler, generator = CandidateSampler(torch.arange(10), VOCABULARY, 10), torch.Generator().manual_seed(2)
    label_logit = (hidden * head[labels]).sum(-1)
    sums = []
    for _ in range(3000):
        _, losses, _ = weighted_cross_entropy(hidden, head, labels, weights, sampler.draw(generator))
        sums.append((losses + label_logit).exp())
    exact = (hidden @ head.T).exp().sum(-1)
    # A label outside the frequent tokens is both itself and, at times, represented: a small known excess.
    frequent = labels < 10
    drawn = torch.stack(sums)[:, frequent]
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact[frequent]).abs() < 4 * error).all()


def test_a_label_that_is_no_candidate_counts_as_right_only_above_all_candidates():
    head = torch.eye(6)
    candidates = CandidateSampler(torch.tensor([0, 1]), 6, 0).draw()
    hidden = torch.tensor([[0.5, 0.1, 0.9, 0, 0, 0], [0.5, 0.1, 0.2, 0, 0, 0]])
    _, _, correct = weighted_cross_entropy(hidden, head, torch.tensor([2, 2]), torch.ones(2), candidates)
    assert correct.tolist() == [True, False]


def test_every_draw_holds_the_frequent_tokens_and_no_token_twice():
    sampler = CandidateSampler(torch.tensor([3, 17, 20]), VOCABULARY, 9)
    generator = torch.Generator().manual_seed(3)
    seen = set()
    for _ in range(60):
        ids = sampler.draw(generator).ids.tolist()
        assert len(ids) == len(set(ids)) == len(sampler) == 12 and ids[:3] == [3, 17, 20]
        seen.update(ids)
    assert seen == set(range(VOCABULARY)), "every other token is drawn some time"


def test_frequent_tokens_are_counted_and_filled_up_from_the_smallest_ids():
    assert frequent_tokens([[9, 9, 7], [9, 7, 5]], 2, 12).tolist() == [7, 9]
    assert frequent_tokens([[9, 9, 7]], 4, 12).tolist() == [0, 1, 7, 9]
    assert len(candidate_sampler([[9, 9, 7]], 8, 12)) == 8
    with pytest.raises(UserError, match="13 frequent tokens"):
        frequent_tokens([[1]], 13, 12)
