"""A document in a packed row is computed as if it were alone: no leak, same positions, same loss and gradient."""

import pytest
import torch

from dflash.blocks.attention import ATTENTION_FORMS
from dflash.blocks.plan import lay_out, plan_blocks
from dflash.data.batch import Batch, collate
from dflash.data.rows import Row, build_rows
from dflash.data.template import Rendered
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.objectives.cross_entropy import decayed_cross_entropy

LAYERS, SIZE, LENGTHS = [1, 3], 4, (13, 21, 9)
FORMS = pytest.mark.parametrize("form", ["dense", "split", "flex"])
WINDOWS = pytest.mark.parametrize("window", [None, 5])


@pytest.fixture
def documents() -> list[Rendered]:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 250, (length,), generator=generator).tolist() for length in LENGTHS]
    return [Rendered(f"c{i}", ids, [p >= 3 for p in range(len(ids))]) for i, ids in enumerate(texts)]


@pytest.fixture
def draft(tiny_target) -> DFlashDraft:
    torch.manual_seed(1)
    config = DFlashConfig.for_target(
        tiny_target, num_hidden_layers=2, num_features=2, block_size=SIZE, target_layer_ids=LAYERS, mask_token_id=260
    )
    return DFlashDraft(config).eval()


def features_of(target, row: Row) -> torch.Tensor:
    """[1, S, n*E]: every document seen by the target on its own."""
    return torch.cat([target.features(torch.tensor([ids]), LAYERS) for ids in row.documents], dim=1)


def plan_with(batch: Batch, anchors: list[int]):
    return lay_out(
        batch.input_ids,
        batch.loss_mask,
        torch.tensor([anchors]),
        torch.ones(1, len(anchors), dtype=torch.bool),
        block_size=SIZE,
        gamma=3.0,
        document_start=batch.document_start,
    )


def hidden_states(draft, target, batch: Batch, features, plan, form: str, window) -> torch.Tensor:
    embeddings = target.embedding(plan.slot_inputs(batch.input_ids, draft.config.mask_token_id))
    attend = ATTENTION_FORMS[form](plan, window)
    return draft(embeddings, features, plan.slot_positions, attend, batch.positions)


@WINDOWS
@FORMS
def test_the_loss_of_a_packed_row_is_the_sum_of_its_documents_losses(tiny_target, draft, documents, form, window):
    """Values and gradients, to fp32 rounding; the documents alone go the old way, without any document_start."""
    head = tiny_target.lm_head.weight
    (row,) = build_rows(documents, max_length=sum(LENGTHS), packing=True)
    anchors = [[4, 9, 11], [3, 10, 19], [5, 7]]

    def run(computation):
        draft.zero_grad()
        with torch.set_grad_enabled(form != "flex"):  # FlexAttention has no backward on CPU
            loss, weight = computation()
        if form != "flex":
            loss.backward()
        return loss.detach(), weight, [p.grad.clone() for p in draft.parameters() if p.grad is not None]

    def packed():
        batch = collate([row])
        plan = plan_with(batch, [s + a for s, own in zip(row.starts, anchors, strict=True) for a in own])
        hidden = hidden_states(draft, tiny_target, batch, features_of(tiny_target, row), plan, form, window)
        loss, statistics = decayed_cross_entropy(hidden, head, plan)
        return loss, statistics.weight

    def alone():
        total, weight = 0.0, 0.0
        for item, own in zip(documents, anchors, strict=True):
            ids, mask = torch.tensor([item.input_ids]), torch.tensor([item.loss_mask])
            keep = torch.ones(1, len(own), dtype=torch.bool)
            plan = lay_out(ids, mask, torch.tensor([own]), keep, block_size=SIZE, gamma=3.0)
            embeddings = tiny_target.embedding(plan.slot_inputs(ids, draft.config.mask_token_id))
            attend = ATTENTION_FORMS[form](plan, window)
            hidden = draft(embeddings, tiny_target.features(ids, LAYERS), plan.slot_positions, attend)
            loss, statistics = decayed_cross_entropy(hidden, head, plan)
            total, weight = total + loss, weight + statistics.weight
        return total, weight

    (loss, weight, grads), (expected, expected_weight, expected_grads) = run(packed), run(alone)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(weight, expected_weight)
    assert len(grads) == len(expected_grads) and (form == "flex" or grads)
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, atol=2e-5, rtol=1e-4)


@WINDOWS
@FORMS
@torch.no_grad()
def test_no_token_of_another_document_changes_a_documents_hidden_states_or_loss(
    tiny_target, draft, documents, form, window
):
    """Bit for bit; its own context does change them, so the probe would see a leak."""
    (row,) = build_rows(documents, max_length=sum(LENGTHS), packing=True)
    batch, features = collate([row]), features_of(tiny_target, row)
    first, end = row.starts[1], row.starts[2]  # the document in the middle has neighbours on both sides
    anchors = [first + 6, first + 12, end - 2]

    def compute(ids, features):
        changed = Batch(ids, batch.loss_mask, batch.document_start)
        plan = plan_with(changed, anchors)
        hidden = hidden_states(draft, tiny_target, changed, features, plan, form, window)
        return hidden, decayed_cross_entropy(hidden, tiny_target.lm_head.weight, plan)[0]

    hidden, loss = compute(batch.input_ids, features)
    for position in range(len(row)):
        ids, touched = batch.input_ids.clone(), features.clone()
        ids[0, position] = (ids[0, position] + 1) % 250
        touched[0, position] += 10.0
        other_hidden, other_loss = compute(ids, touched)
        if not first <= position < end:
            assert torch.equal(hidden, other_hidden) and torch.equal(loss, other_loss), position
        elif anchors[0] - 2 <= position < anchors[0]:
            assert not torch.equal(hidden, other_hidden), position


def test_every_packed_document_gets_anchors_of_its_own(documents):
    (row,) = build_rows(documents, max_length=sum(LENGTHS), packing=True)
    batch = collate([row], multiple=16)
    plan = plan_blocks(
        batch.input_ids,
        batch.loss_mask,
        block_size=SIZE,
        num_anchors=100,
        gamma=3.0,
        generator=torch.Generator().manual_seed(0),
        document_start=batch.document_start,
    )
    kept = plan.anchors[plan.keep].tolist()
    supervised = [[s + i for i in range(3, n - 1)] for s, n in zip(row.starts, LENGTHS, strict=True)]
    assert kept == sum(supervised, [])
    assert plan.starts[plan.keep].tolist() == [s for s, own in zip(row.starts, supervised, strict=True) for _ in own]
