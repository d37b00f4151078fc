"""Comparing two decodings: identity, where they part, and by how much."""

import pytest
from scripted_proposer import ScriptedProposer

from dflash.decoding.comparison import compare, explain_difference, first_difference, with_shape_gaps
from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Sampling
from dflash.decoding.trace import Step, Trace

PROMPT = [5, 9, 200, 31, 77, 8]


@pytest.fixture
def engine(tiny_target) -> Engine:
    text = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=30, stop_ids=()).finish().tokens
    return Engine(tiny_target, proposer=ScriptedProposer(text, lambda rng: rng.randrange(4)))


def trace_of(tokens: list[int]) -> Trace:
    steps = [Step(i, [], 0, token, [token], 0.0, 0.01, 0.0) for i, token in enumerate(tokens)]
    return Trace("target", len(PROMPT), 1, steps=steps)


@pytest.mark.parametrize("draft_first", [False, True])
def test_greedy_comparison_is_identical_and_measures_a_speedup(engine, draft_first):
    result = compare(engine, PROMPT, 30, draft_first=draft_first)
    assert result.identical is True and result.first_difference is None
    assert result.reference.block_size == result.draft.block_size == 4
    assert result.target.block_size == 1
    assert result.speedup == pytest.approx(result.draft.tok_s / result.target.tok_s)


def test_sampling_claims_no_identity(engine):
    result = compare(engine, PROMPT, 10, Sampling(temperature=1.0))
    assert (result.identical, result.reference, result.first_difference) == (None, None, None)


def test_first_difference_counts_a_text_that_ends_early():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_a_difference_is_explained_by_the_logit_gap(tiny_target):
    greedy = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=6, stop_ids=()).finish()
    other = trace_of([*greedy.tokens[:3], (greedy.tokens[3] + 1) % 250, 4, 4])
    found = explain_difference(tiny_target, PROMPT, greedy, other)
    assert (found.index, found.first) == (3, greedy.tokens[3])
    assert found.gap > 0
    assert explain_difference(tiny_target, PROMPT, greedy, greedy) is None
    shorter = explain_difference(tiny_target, PROMPT, greedy, trace_of(greedy.tokens[:2]))
    assert (shorter.index, shorter.second, shorter.gap) == (2, None, None)


def test_shape_gaps_mark_the_steps_where_one_token_shape_chooses_otherwise(tiny_target):
    greedy = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=6, stop_ids=()).finish()
    assert all(step.gap is None for step in with_shape_gaps(tiny_target, PROMPT, greedy).steps)
    wrong = trace_of([*greedy.tokens[:2], (greedy.tokens[2] + 1) % 250])
    gaps = [step.gap for step in with_shape_gaps(tiny_target, PROMPT, wrong).steps]
    assert gaps[:2] == [None, None] and gaps[2] > 0
