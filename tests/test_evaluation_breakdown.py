"""Tau by group and place, acceptance by entropy, misses and pairs follow from the recorded steps alone."""

from dataclasses import replace

import pytest

from dflash.errors import UserError
from dflash.evaluation.acceptance import AcceptanceCounts
from dflash.evaluation.breakdown import acceptance_by, most_missed, paired, tau_by, tau_by_position, tau_of
from dflash.evaluation.report_file import Answer, Detail, Evaluation

# Positions:      0    1    2    3    4    5    6    7    8
PIECES = tuple(["The", "cat", "sat", "on", "the", "mat", "and", "the", "dog"])
TOKENS = (10, 11, 12, 13, 14, 15, 16, 14, 17)
ENTROPY = (0.1, 0.2, 0.3, 2.5, 0.4, 0.1, 0.2, 1.5, 3.0)
# Three steps of block size 4: 2 accepted and a miss at 3; 3 accepted at 4..6, the bonus at 7; a miss at 8.
DETAIL = Detail((2, 3, 0), (99, None, 98), ("in", None, "cow"), TOKENS, PIECES, ENTROPY)


def answer(name="a", detail=DETAIL, **changes) -> Answer:
    whole = Answer(
        set="s",
        id=name,
        category="math",
        language="English",
        turn=0,
        counts=AcceptanceCounts((1, 0, 1, 1)),
        steps=3,
        decoded_tokens=8,
        prompt_tokens=5,
        speedup=1.5,
        identical=True,
        detail=detail,
    )
    return replace(whole, **changes)


def evaluation(*answers, **settings) -> Evaluation:
    return Evaluation("d", {"block_size": 4, "target": "t"} | settings, {}, answers, {}, None)


def test_tau_pools_tokens_and_steps_and_resamples_prompts():
    answers = [answer(f"p{i}", steps=10, decoded_tokens=10 + i) for i in range(20)]
    estimate = tau_of(answers)
    assert estimate.value == pytest.approx(sum(10 + i for i in range(20)) / 200)
    low, high = estimate.interval
    assert low < estimate.value < high
    # The normal approximation to the spread of a mean of 20 equal-sized prompts.
    spread = (sum((i - 9.5) ** 2 for i in range(20)) / 20) ** 0.5 / 10 / 20**0.5
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert tau_of(answers) == estimate, "the bootstrap is seeded"
    assert tau_of(answers[:1]).interval is None
    assert tau_of([]).value is None


def test_turns_of_one_prompt_are_resampled_together():
    turns = [answer("one", turn=i, decoded_tokens=3 + i) for i in range(4)]
    assert tau_of(turns).prompts == 1 and tau_of(turns).interval is None


def test_groups_are_kept_apart_the_highest_first():
    groups = tau_by([answer("a", category="math", decoded_tokens=3), answer("b", category="code")], "category")
    assert [(name, estimate.value) for name, estimate in groups.items()] == [("code", 8 / 3), ("math", 1.0)]


def test_tau_by_position_puts_each_step_where_it_begins():
    early, late, beyond = tau_by_position([answer()], [1, 5, 9, 100])
    assert (early.value, early.steps) == (3.5, 2)  # steps at 1 (3 tokens) and 4 (4 tokens)
    assert (late.value, late.steps) == (1.0, 1)  # the step at 8 emitted the target's own token only
    assert (beyond.value, beyond.steps) == (None, 0)


def test_acceptance_by_entropy_counts_every_judged_draft_once():
    sure, unsure = acceptance_by([answer()], [0, 1, 10], lambda judgement: judgement.entropy)
    assert (sure.hits, sure.total) == (5, 5)
    assert (unsure.hits, unsure.total) == (0, 2), "the bonus at position 7 was never judged"


def test_most_missed_tokens_come_with_rate_replacement_and_context():
    twice = [answer("a"), answer("b")]
    first, second = most_missed(twice)
    assert (first.token, first.text, first.missed.hits, first.missed.total) == (13, "on", 2, 2)
    assert first.instead == (("in", 2),)
    assert first.examples[0].before == "Thecatsat" and first.examples[0].entropy == 2.5
    assert second.text == "dog" and len(most_missed(twice, count=1)) == 1


def test_pairs_are_the_answers_that_both_have():
    first = evaluation(*(answer(f"p{i}") for i in range(5)))
    second = evaluation(*(answer(f"p{i}", decoded_tokens=9 - i) for i in range(4)), answer("other"))
    result = paired(first, second)
    assert (result.better, result.equal, result.worse) == (1, 1, 2)
    assert result.difference.value == pytest.approx((9 + 8 + 7 + 6) / 12 - 8 / 3)
    assert result.difference.prompts == 4
    with pytest.raises(UserError, match="share no prompt"):
        paired(first, evaluation(answer("other")))
    with pytest.raises(UserError, match="target"):
        paired(first, evaluation(answer("p0"), target="other"))


def test_files_without_detail_are_refused_where_detail_is_needed():
    old = answer(detail=None)
    assert tau_of([old]).value == 8 / 3
    for ask in (lambda: most_missed([old]), lambda: tau_by_position([old], [0, 9])):
        with pytest.raises(UserError, match="evaluate again"):
            ask()
