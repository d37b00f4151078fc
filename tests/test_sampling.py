"""Sampling and both verification rules: the emitted text has the target's own distribution."""

import math

import pytest
import torch

from dflash.decoding.engine import Engine
from dflash.decoding.sampling import Dice, Sampling, draw, probabilities
from dflash.decoding.verification import Proposal, verify
from dflash.errors import UserError
from dflash.target import TargetOutput

RUNS = 20_000
# Chi-square quantile at 1 - 1e-4 by Wilson and Hilferty's approximation; seeds are fixed, so tests never flicker.
Z = 3.719


def chi_square_fits(counts: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether observed counts are compatible with expected ones; cells below 5 expected are merged into one."""
    large = expected >= 5
    counts = torch.cat([counts[large], counts[~large].sum()[None]]).double()
    expected = torch.cat([expected[large], expected[~large].sum()[None]]).double()
    filled = expected > 0
    if counts[~filled].sum() > 0:
        return False
    statistic = float(((counts - expected)[filled] ** 2 / expected[filled]).sum())
    freedom = int(filled.sum()) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + Z * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic < limit


def dice(seed: int, positions: int = 8) -> Dice:
    return Dice(seed, positions, torch.device("cpu"))


def test_draw_follows_the_distribution_and_never_takes_a_token_of_probability_zero():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    uniforms = torch.linspace(0, 1, RUNS + 1, dtype=torch.float64)[:-1]
    counts = torch.bincount(draw(probs.expand(RUNS, -1), uniforms), minlength=6)
    assert (counts - probs * RUNS).abs().max() <= 1
    assert draw(probs[None], torch.ones(1, dtype=torch.float64)).item() == 4


def toy_chain(vocab: int, seed: int) -> torch.Tensor:
    """Logits [V, V] of a first-order language: the next token depends on the last one."""
    return torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)) * 1.5


@pytest.mark.parametrize("rule", ["target", "rejection"])
def test_emitted_pairs_have_the_target_distribution_whatever_the_draft(rule):
    vocab, temperature, first = 5, 0.7, 2
    target_logits, draft_logits = toy_chain(vocab, 0), toy_chain(vocab, 1)
    sampling = Sampling(temperature, rule)
    p, q = probabilities(target_logits, temperature), probabilities(draft_logits, temperature)
    pairs = torch.zeros(vocab, vocab)
    for seed in range(RUNS):
        rolls = dice(seed)
        # The draft proposes both tokens from the anchor alone, as a block draft does.
        marginals = torch.stack([q[first], q[first]])
        if sampling.samples_draft:
            proposal = Proposal(draw(marginals, rolls.fresh(2)), marginals)
        else:
            proposal = Proposal(marginals.argmax(-1))
        rows = torch.tensor([first, *proposal.tokens.tolist()])
        verdict = verify(target_logits[rows], proposal, sampling, rolls, 0)
        emitted = [*verdict.proposed[: verdict.accepted], verdict.correction]
        if len(emitted) == 1:
            emitted.append(verify(target_logits[emitted], Proposal.empty("cpu"), sampling, rolls, 1).correction)
        pairs[emitted[0], emitted[1]] += 1
    assert chi_square_fits(pairs.flatten(), (p[first][:, None] * p).flatten() * RUNS)


def test_rejection_accepts_with_the_overlap_of_both_distributions():
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    sampling = Sampling(1.0, "rejection")
    accepted, corrections = 0, torch.zeros(3)
    for seed in range(RUNS):
        rolls = dice(seed)
        proposal = Proposal(draw(q[None], rolls.fresh(1)), q[None])
        verdict = verify(torch.stack([p.log(), p.log()]), proposal, sampling, rolls, 0)
        accepted += verdict.accepted
        if not verdict.accepted:
            corrections[verdict.correction] += 1
    overlap = float(torch.minimum(p, q).sum())
    assert abs(accepted / RUNS - overlap) < 4 * math.sqrt(overlap * (1 - overlap) / RUNS)
    assert corrections[1:].sum() == 0  # the residual (p - q)+ lives on token 0 alone


def test_a_draft_equal_to_the_target_is_always_accepted():
    logits = toy_chain(6, 3)[:3]
    q = probabilities(logits[:2], 1.0)
    for seed in range(200):
        rolls = dice(seed)
        proposal = Proposal(draw(q, rolls.fresh(2)), q)
        assert verify(logits, proposal, Sampling(1.0, "rejection"), rolls, 0).accepted == 2


def test_greedy_accepts_while_equal_and_corrects_with_the_most_likely_token():
    logits = torch.eye(5)[[3, 1, 4, 0]]
    verdict = verify(logits, Proposal(torch.tensor([3, 1, 2])), Sampling(), dice(0), 0)
    assert (verdict.proposed, verdict.accepted, verdict.correction) == ([3, 1, 2], 2, 4)
    whole = verify(logits, Proposal(torch.tensor([3, 1, 4])), Sampling(), dice(0), 0)
    assert (whole.accepted, whole.correction) == (3, 0)


class TableCache:
    """The tokens a target has read, croppable like a real cache."""

    layers = ()

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def get_seq_length(self) -> int:
        return len(self.tokens)

    def crop(self, tokens_to_remove: int) -> None:
        del self.tokens[tokens_to_remove:]


class TableTarget:
    """A second-order language as a target: the logits depend on the last two tokens, by way of the cache."""

    device, max_length, name = torch.device("cpu"), 100, "table"

    def __init__(self, vocab: int) -> None:
        self.table = torch.randn(vocab, vocab, vocab, generator=torch.Generator().manual_seed(2)) * 1.5

    def new_cache(self) -> TableCache:
        return TableCache()

    def forward(self, ids, cache, *, layer_ids=(), keep_logits=0):
        before = len(cache.tokens)
        cache.tokens += ids[0].tolist()
        text = torch.tensor([0, *cache.tokens])
        logits = self.table[text[before:-1], text[before + 1 :]][None]
        return TargetOutput(logits[:, -keep_logits:], torch.zeros(1, ids.shape[1], 1))


class FixedProposer:
    """Proposes from one distribution per slot, whatever the text."""

    block_size, layer_ids = 3, [1]

    def __init__(self, vocab: int) -> None:
        self.probs = torch.randn(2, vocab, generator=torch.Generator().manual_seed(5)).softmax(-1)

    def start(self):
        return self

    def extend(self, features) -> None:
        pass

    def propose(self, anchor, count, sampling, rolls) -> Proposal:
        if sampling.samples_draft:
            return Proposal(draw(self.probs, rolls.fresh(count)), self.probs)
        return Proposal(self.probs.argmax(-1))


@pytest.mark.parametrize("mode", ["plain", "target", "rejection"])
def test_the_engine_emits_texts_with_the_joint_distribution_of_the_target(mode):
    vocab, prompt, runs = 4, [3, 1], 6000
    target = TableTarget(vocab)
    p = probabilities(target.table.flatten(0, 1), 0.8).view(vocab, vocab, vocab)
    joint = p[3, 1][:, None, None] * p[1][:, :, None] * p  # of (a, b, c): p(a|3,1) p(b|1,a) p(c|a,b)
    engine = Engine(target, proposer=FixedProposer(vocab))
    counts = torch.zeros(vocab, vocab, vocab)
    for seed in range(runs):
        options = {"max_new_tokens": 3, "sampling": Sampling(0.8, "target" if mode == "plain" else mode, seed)}
        decode = engine.decode_target if mode == "plain" else engine.decode_draft
        counts[tuple(decode(prompt, stop_ids=(), **options).finish().tokens)] += 1
    assert chi_square_fits(counts.flatten(), joint.flatten() * runs)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 5e-324])
def test_a_tiny_temperature_is_greedy_and_never_leaves_the_vocabulary(temperature):
    logits = torch.tensor([[-40.0, 12.5, 12.0, 30.0], [0.0, -1.0, -math.inf, -2.0], [7.0, 9.0, 9.0, -5.0]])
    probs = probabilities(logits, temperature)
    expected = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0.5, 0.5, 0]])
    torch.testing.assert_close(probs, expected)
    tokens = draw(probs, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert tokens.tolist() == [3, 0, 2]


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(UserError, match="temperature"):
        Sampling(temperature)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="target, rejection"):
        Sampling(1.0, "typical")
