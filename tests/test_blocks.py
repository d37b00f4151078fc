"""Blocks: anchors, layout, and the agreement of the three mask forms."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dflash.blocks.anchors import candidate_mask, sample_anchors
from dflash.blocks.attention import ATTENTION_FORMS, FlexAttention, compiled_flex_attention
from dflash.blocks.mask import dense_mask, flex_block_mask, mask_predicate, summarise_tiles
from dflash.blocks.plan import decay_weights, lay_out, plan_blocks
from dflash.blocks.reasons import Reason, explain, reasons, sentences

LENGTH, ANCHORS, SIZE = 37, 9, 4


@pytest.fixture
def text():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 100, (2, LENGTH), generator=generator)
    loss_mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    loss_mask[0, 5:20] = True
    loss_mask[0, 25:37] = True
    loss_mask[1, 30:34] = True  # three candidates only: the other slots are dropped
    return ids, loss_mask


@pytest.fixture(params=["whole", "packed"])
def plan(text, request):
    """Blocks of rows that are one document each, or three and two."""
    document_start = None
    if request.param == "packed":
        document_start = torch.zeros(2, LENGTH, dtype=torch.int64)
        document_start[0, 9:28], document_start[0, 28:] = 9, 28
        document_start[1, 21:] = 21
    return plan_blocks(
        *text,
        block_size=SIZE,
        num_anchors=ANCHORS,
        gamma=4.0,
        generator=torch.Generator().manual_seed(1),
        document_start=document_start,
    )


def reference_mask(plan, sequence, window):
    """The rule of COMPATIBILITY.md, cell by cell."""
    slots, length = plan.num_anchors * plan.block_size, plan.sequence_length
    mask = torch.zeros(slots, length + slots, dtype=torch.bool)
    for q in range(slots):
        block, slot = divmod(q, plan.block_size)
        if not plan.keep[sequence, block]:
            continue
        anchor, start = int(plan.anchors[sequence, block]), int(plan.starts[sequence, block])
        for kv in range(length + slots):
            if kv < length:
                mask[q, kv] = start <= kv < anchor and (window is None or kv >= anchor + slot - (window - 1))
            else:
                other, other_slot = divmod(kv - length, plan.block_size)
                mask[q, kv] = other == block and (window is None or other_slot <= slot)
    return mask


def test_anchors_are_supervised_distinct_and_static_in_number(text):
    _, loss_mask = text
    anchors, keep = sample_anchors(loss_mask, ANCHORS, torch.Generator().manual_seed(0))
    assert anchors.shape == keep.shape == (2, ANCHORS)
    assert keep.sum(1).tolist() == [ANCHORS, 3]
    for row in range(2):
        chosen = anchors[row][keep[row]]
        assert candidate_mask(loss_mask)[row, chosen].all()
        assert chosen.unique().numel() == chosen.numel()
        assert (chosen.diff() > 0).all()


def test_anchors_are_uniform_over_candidates():
    loss_mask = torch.ones(4000, 11, dtype=torch.bool)
    anchors, _ = sample_anchors(loss_mask, 3, torch.Generator().manual_seed(0))
    share = torch.bincount(anchors.flatten(), minlength=11)[:10] / (4000 * 3)
    assert (share - 0.1).abs().max() < 0.01
    assert not (anchors == 10).any(), "the last token has no successor to predict"


def test_same_seed_gives_same_anchors_and_more_slots_than_tokens_are_dropped(text):
    _, loss_mask = text
    first = sample_anchors(loss_mask, 50, torch.Generator().manual_seed(7))
    second = sample_anchors(loss_mask, 50, torch.Generator().manual_seed(7))
    assert torch.equal(first[0], second[0])
    assert first[0].shape == (2, 50)
    assert first[1].sum(1).tolist() == candidate_mask(loss_mask).sum(1).tolist()


def test_labels_and_weights_follow_the_text(text):
    ids, loss_mask = text
    anchors, keep = torch.tensor([[18, 35], [30, 0]]), torch.tensor([[True, True], [True, False]])
    plan = lay_out(ids, loss_mask, anchors, keep, block_size=SIZE, gamma=2.0)
    decay = decay_weights(SIZE, 2.0)
    assert decay[0] == 0 and decay[1] == 1 and torch.isclose(decay[2], torch.tensor(0.60653), atol=1e-4)
    assert plan.labels[0, 0].tolist() == ids[0, 18:22].tolist()
    assert plan.weights[0, 0].tolist() == [0, 1, 0, 0], "the answer ends at 20"
    assert plan.weights[0, 1, 1] == 1 and (plan.weights[0, 1, 2:] == 0).all(), "the text ends at 37"
    assert (plan.weights[1, 1] == 0).all(), "a dropped block yields no loss"
    assert plan.slot_positions[0].tolist() == [18, 19, 20, 21, 35, 36, 37, 38]
    inputs = plan.slot_inputs(ids, 99).view(2, 2, SIZE)
    assert inputs[0, 1].tolist() == [ids[0, 35], 99, 99, 99]


def test_a_row_with_a_generator_of_its_own_draws_the_same_anchors_in_any_batch_and_padding():
    mask = torch.rand(3, 70, generator=torch.Generator().manual_seed(2)) < 0.7
    mask[1, 40:] = False  # as padding does

    def sample(rows, length):
        generators = [torch.Generator().manual_seed(100 + row) for row in rows]
        return sample_anchors(mask[rows, :length], 6, generators)[0]

    together = sample([0, 1, 2], 70)
    assert torch.equal(together[1:2], sample([1], 40))
    assert torch.equal(together[[2, 0]], sample([2, 0], 70))
    assert not torch.equal(together[0], together[2])
    with pytest.raises(ValueError, match="1 generators were given for 2 rows"):
        sample_anchors(mask[:2], 6, [torch.Generator()])


def test_the_last_token_of_a_document_is_no_anchor_since_its_successor_is_another_documents():
    loss_mask = torch.ones(1, 10, dtype=torch.bool)
    document_start = torch.tensor([[0] * 4 + [4] * 6])
    assert candidate_mask(loss_mask, document_start)[0].nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 7, 8]


def test_positions_labels_and_weights_stop_at_the_documents_edges():
    ids, loss_mask = torch.arange(10, 20)[None], torch.ones(1, 10, dtype=torch.bool)
    anchors, keep = torch.tensor([[2, 5, 0]]), torch.tensor([[True, True, False]])
    document_start = torch.tensor([[0] * 4 + [4] * 6])
    plan = lay_out(ids, loss_mask, anchors, keep, block_size=4, gamma=2.0, document_start=document_start)
    assert plan.starts.tolist() == [[0, 4, 0]]
    assert plan.slot_positions.view(3, 4)[:2].tolist() == [[2, 3, 4, 5], [1, 2, 3, 4]]
    assert plan.labels[0].tolist() == [[12, 13, 0, 0], [15, 16, 17, 18], [0, 0, 0, 0]]
    assert (plan.weights[0] > 0).int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("window", [None, 6])
def test_dense_mask_equals_the_written_rule(plan, window):
    dense = dense_mask(plan, window)
    for sequence in range(2):
        assert torch.equal(dense[sequence], reference_mask(plan, sequence, window))


@pytest.mark.parametrize("window", [None, 6])
def test_flex_block_mask_marks_the_tiles_of_the_dense_mask(plan, window):
    tiles = flex_block_mask(plan, window).to_dense()[:, 0].bool()
    dense = dense_mask(plan, window)
    rows, columns = tiles.shape[1:]
    padded = torch.nn.functional.pad(dense, (0, columns * 128 - dense.shape[2], 0, rows * 128 - dense.shape[1]))
    expected = padded.view(2, rows, 128, columns, 128).any(-1).any(2)
    assert torch.equal(tiles, expected)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("form", ["split", "flex"])
def test_attention_forms_agree_with_the_dense_one_and_so_do_their_gradients(plan, window, form):
    def run(name):
        torch.manual_seed(0)
        slots = ANCHORS * SIZE
        shapes = [(2, 4, slots, 8), (2, 2, LENGTH, 8), (2, 2, LENGTH, 8), (2, 2, slots, 8), (2, 2, slots, 8)]
        tensors = [torch.randn(*shape, requires_grad=name != "flex") for shape in shapes]
        out = ATTENTION_FORMS[name](plan, window)(*tensors)
        if name != "flex":  # FlexAttention has no backward on CPU
            (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
        return out.detach(), [t.grad for t in tensors]

    out, grads = run(form)
    expected, expected_grads = run("dense")
    alive = plan.keep.repeat_interleave(SIZE, 1)[:, None, :, None]
    torch.testing.assert_close(out * alive, expected, atol=1e-5, rtol=1e-4)
    assert (out.masked_select(~alive.expand_as(out)) == 0).all(), "dropped blocks attend to nothing"
    if form != "flex":
        for grad, reference in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 6])
def test_every_cell_is_explained_in_agreement_with_the_mask(plan, window):
    dense = dense_mask(plan, window)
    for q in range(0, ANCHORS * SIZE, 3):
        for kv in range(LENGTH + ANCHORS * SIZE):
            for sequence in range(2):
                words = explain(plan, sequence, q, kv, window)
                assert (" sees context" in words or " sees slot" in words) == bool(dense[sequence, q, kv]), words
                alive, start = plan.keep[sequence, q // SIZE], plan.starts[sequence, q // SIZE]
                assert ("another document" in words) == bool(alive and kv < LENGTH and kv < start), words


@pytest.mark.parametrize("window", [None, 1, 6])
def test_a_reason_is_visible_exactly_where_the_mask_is(plan, window):
    queries, keys = torch.arange(ANCHORS * SIZE), torch.arange(LENGTH + ANCHORS * SIZE)
    dense = dense_mask(plan, window)
    for sequence in range(2):
        found = reasons(plan, sequence, queries, keys, window)
        assert torch.equal(found <= Reason.OWN_BLOCK, dense[sequence])
        dropped = ~plan.keep[sequence].repeat_interleave(SIZE)
        assert torch.equal((found == Reason.DROPPED).any(1), dropped)
        if window is None:
            assert not {Reason.OUTSIDE_WINDOW, Reason.LATER_SLOT} & set(found.flatten().tolist())


def test_many_cells_are_told_as_each_is_by_itself(plan):
    queries, keys = [0, 5, ANCHORS * SIZE - 1], [0, 7, LENGTH - 1, LENGTH, LENGTH + 9]
    together = sentences(plan, 1, queries, keys, 6)
    assert together == [[explain(plan, 1, query, key, 6) for key in keys] for query in queries]


@pytest.mark.parametrize("document_start", [None, torch.arange(600)[None] // 290 * 290])
def test_tile_summary_counts_what_the_dense_mask_holds(document_start):
    ids = torch.arange(600)[None]
    plan = plan_blocks(ids, torch.ones(1, 600, dtype=torch.bool), block_size=8, num_anchors=40, gamma=4.0,
                       generator=torch.Generator().manual_seed(0), document_start=document_start)
    summary = summarise_tiles(plan, tile=128)
    dense = dense_mask(plan)[0]
    for i in range(summary.state.shape[0]):
        for j in range(summary.state.shape[1]):
            cell = dense[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
            assert summary.seen[i, j] == cell.sum()
            assert summary.state[i, j] == (0 if not cell.any() else 2 if cell.all() else 1)
    assert summary.count(0) + summary.count(1) + summary.count(2) == summary.state.numel()


def test_predicate_broadcasts_over_tensors(plan):
    visible = mask_predicate(plan)(torch.zeros(1, dtype=torch.long), None, torch.tensor([0]), torch.tensor([0]))
    assert visible.dtype == torch.bool


def test_flex_attention_is_compiled_once_for_each_of_many_row_lengths_and_never_falls_back():
    """Torch stops compiling a function behind 8 shapes, silently, unless it is told otherwise."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    kernel, before = compiled_flex_attention(counter), torch._dynamo.config.recompile_limit
    lengths = [128 * n for n in range(1, 25)]
    for _ in range(2):
        for length in lengths:
            ids = torch.arange(length)[None]
            attention = FlexAttention(plan_blocks(ids, ids >= 0, block_size=4, num_anchors=32, gamma=4.0))
            query, key = torch.ones(1, 2, 128, 16), torch.ones(1, 1, length + 128, 16)
            with torch.no_grad():
                kernel(query, key, key, block_mask=attention.block_mask, enable_gqa=True)
    assert counter.frame_count == len(lengths)
    assert torch._dynamo.config.recompile_limit == before, "other compiled code keeps its limit"
