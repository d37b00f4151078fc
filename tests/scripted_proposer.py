"""A proposer for tests that knows the target's continuation and errs on purpose."""

import random

import torch

from dflash.decoding.verification import Proposal


class ScriptedProposer:
    """Proposes the known continuation, right up to `right(rng)` tokens a block and surely wrong behind those."""

    def __init__(self, continuation, right, *, block_size=4, layer_ids=(1, 3), vocab_size=264, seed=0):
        self.continuation = list(continuation)
        self.right = right
        self.block_size = block_size
        self.layer_ids = list(layer_ids)
        self.vocab_size = vocab_size
        self.rng = random.Random(seed)
        self.extended = []  # tokens per extension
        self.features = []

    def start(self):
        self.extended, self.features = [], []
        return self

    def extend(self, features):
        self.extended.append(features.shape[1])
        self.features.append(features)

    def propose(self, anchor, count, sampling, dice):
        at = sum(self.extended[1:]) + 1  # the anchor is continuation[at - 1]
        right = self.right(self.rng)
        known = self.continuation[at : at + count]
        known += [0] * (count - len(known))
        tokens = [t if i < right else (t + 1) % self.vocab_size for i, t in enumerate(known)]
        return Proposal(torch.tensor(tokens))
