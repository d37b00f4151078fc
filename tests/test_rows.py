"""Rows and batches: what packing keeps, how full its rows are, what padding looks like."""

import random

import pytest
import torch

from dflash.data.batch import collate
from dflash.data.rows import Row, build_rows, pack
from dflash.data.template import Rendered


def conversation(name: str, tokens: list[int], supervised_from: int = 1) -> Rendered:
    return Rendered(name, tokens, [i >= supervised_from for i in range(len(tokens))])


A = conversation("a", [1, 2, 3, 4, 5])
B = conversation("b", [6, 7, 8])
C = conversation("c", [9, 10])


def test_without_packing_every_conversation_is_a_row_in_order():
    rows = build_rows([A, B, C], max_length=5, packing=False)
    assert [row.ids for row in rows] == [("a",), ("b",), ("c",)]
    assert [row.documents for row in rows] == [[A.input_ids], [B.input_ids], [C.input_ids]]
    assert [(len(row), row.supervised, row.starts) for row in rows] == [(5, 4, (0,)), (3, 2, (0,)), (2, 1, (0,))]


def test_a_packed_row_keeps_every_document_whole_with_its_mask():
    (row,) = build_rows([A, B, C], max_length=10, packing=True)
    assert row == Row(
        ("a", "b", "c"), [*range(1, 11)], A.loss_mask + B.loss_mask + C.loss_mask, starts=(0, 5, 8)
    )
    assert row.documents == [A.input_ids, B.input_ids, C.input_ids]
    assert (len(row), row.supervised) == (10, 7)


def test_packing_loses_and_repeats_nothing_and_never_exceeds_the_length():
    choose = random.Random(0)
    lengths = [choose.randint(1, 200) for _ in range(500)]
    groups = pack(lengths, 256)
    assert sorted(index for group in groups for index in group) == list(range(500))
    assert all(sum(lengths[i] for i in group) <= 256 for group in groups)
    assert groups == pack(lengths, 256), "the same input gives the same rows"


def test_packed_rows_are_nearly_full():
    choose = random.Random(1)
    lengths = [min(512, int(choose.lognormvariate(4.8, 0.6)) + 5) for _ in range(2000)]
    groups = pack(lengths, 512)
    assert len(groups) <= 1.01 * -(-sum(lengths) // 512)


def test_packing_takes_the_tightest_fit():
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert pack([10, 10], 10) == [[0], [1]]
    assert pack([], 10) == []


@pytest.mark.parametrize("packing", [True, False])
def test_a_conversation_beyond_the_length_is_refused_by_name(packing):
    with pytest.raises(ValueError, match="'a' has 5 tokens"):
        build_rows([C, A], max_length=4, packing=packing)


def test_a_batch_is_padded_with_unsupervised_documents_of_one_token():
    rows = [*build_rows([A, C], max_length=8, packing=True), *build_rows([B], max_length=8, packing=False)]
    batch = collate(rows)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 9, 10], [6, 7, 8, 0, 0, 0, 0]]
    assert batch.document_start.tolist() == [[0, 0, 0, 0, 0, 5, 5], [0, 0, 0, 3, 4, 5, 6]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 0, 0, 0, 0]]
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0, 0]]
    assert (batch.input_ids.dtype, batch.loss_mask.dtype) == (torch.int64, torch.bool)


def test_a_batch_is_padded_on_to_a_multiple():
    rows = build_rows([A], max_length=5, packing=False)
    assert collate(rows, multiple=4).input_ids.shape == (1, 8)
    assert collate(rows, multiple=5).input_ids.shape == (1, 5)


def test_a_batch_moves_as_a_whole():
    batch = collate(build_rows([A], max_length=5, packing=False)).to("meta")
    tensors = (batch.input_ids, batch.loss_mask, batch.document_start, batch.positions)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
