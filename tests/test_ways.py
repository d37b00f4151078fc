"""Ways side by side: paired rounds, one yardstick, honest verdicts."""

import pytest
import torch
from scripted_proposer import ScriptedProposer
from test_transformers_engine import tiny_assistant

from dflash.decoding.engine import Engine
from dflash.decoding.ways import Lineup, Way, yardstick
from dflash.errors import UserError
from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft

PROMPT = [5, 9, 200, 31, 77, 8]


@pytest.fixture(scope="module")
def parts(tiny_target):
    torch.manual_seed(1)
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=3, block_size=4)
    engine = Engine(tiny_target, DFlashDraft(config).eval())
    small = tiny_assistant(tiny_target, seed=7)
    return {"engine_of": lambda name: engine, "assistant_of": lambda name: small, "lookup": lambda: tiny_target}


def test_every_way_is_measured_beside_the_target_alone_and_found_identical(parts):
    ways = [
        Way("draft"),
        Way("draft", block_size=3),
        Way("plain"),
        Way("prompt_lookup"),
        Way("assistant", assistant="small"),
    ]
    rows = Lineup(ways, **parts).run(PROMPT, 24, rounds=2)
    assert [row.way for row in rows] == [Way("target"), *ways]
    assert len({row.tokens for row in rows}) == 1
    assert [row.identical for row in rows] == [None, True, True, True, True, True]
    assert all(len(row.tok_s) == len(row.speedups) == 2 for row in rows)
    assert rows[0].speedup == 1.0
    assert rows[1].speedups[0] == pytest.approx(rows[1].tok_s[0] / rows[0].tok_s[0])


def test_a_way_that_says_something_else_is_shown_with_the_place_and_the_gap(tiny_target, parts, monkeypatch):
    lineup = Lineup([Way("plain")], **parts)
    other = lineup._others[Way("plain")]
    honest = other.decode

    def wrong(*args, **options):
        found = honest(*args, **options)
        tokens = list(found.tokens)
        tokens[5] = (tokens[5] + 1) % 250
        from dataclasses import replace

        return replace(found, tokens=tuple(tokens))

    monkeypatch.setattr(other, "decode", wrong)
    row = lineup.run(PROMPT, 12)[1]
    assert row.identical is False and row.difference.index == 5 and row.difference.gap > 0


def test_a_proposer_that_is_right_raises_tau_of_its_own_row_only(tiny_target, parts):
    text = Engine(tiny_target).decode_target(PROMPT, max_new_tokens=25, stop_ids=()).finish().tokens
    right = Engine(tiny_target, proposer=ScriptedProposer(text, lambda rng: 3))
    rows = Lineup([Way("draft")], **parts | {"engine_of": lambda name: right}).run(PROMPT, 24)
    assert rows[0].tau == 1.0 and rows[1].tau > 2 and rows[1].forwards < rows[0].forwards


def test_sampled_ways_have_a_yardstick_of_their_own_and_no_verdict(parts):
    rows = Lineup([Way("draft", temperature=0.8, seed=3), Way("draft")], **parts).run(PROMPT, 8)
    assert [row.way for row in rows][:2] == [Way("target", temperature=0.8, seed=3), Way("target")]
    assert rows[2].identical is None and rows[3].identical is True
    assert yardstick(Way("plain", temperature=0.8, seed=3)) == rows[0].way


def test_whatever_a_tick_raises_ends_the_run_within_that_step(parts):
    class Enough(Exception):
        pass

    seen = []

    def tick(way, number):
        seen.append(way.kind)
        if seen.count("draft") == 2:
            raise Enough

    with pytest.raises(Enough):
        Lineup([Way("draft"), Way("plain")], **parts).run(PROMPT, 24, tick=tick)
    assert seen[-1] == "draft" and "plain" not in seen


def test_impossible_wishes_are_refused_in_a_sentence(parts):
    with pytest.raises(UserError, match="Unknown way 'magic'"):
        Way("magic")
    with pytest.raises(UserError, match="13 ways are too many"):
        Lineup([Way("draft", seed=seed, temperature=1.0) for seed in range(13)], **parts)
    with pytest.raises(UserError, match="0 rounds"):
        Lineup([Way("draft")], **parts).run(PROMPT, 8, rounds=0)
