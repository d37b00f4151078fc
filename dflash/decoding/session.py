"""One decoding under way: its caches, and the one step that plain and speculative decoding share.

The target's cache holds the tokens strictly before the *anchor*, the newest token of the text. A step runs the target
over a block [anchor, proposals, padding] of fixed width, keeps what the verdict lets stand, and removes the rest from
the cache. Plain decoding is the same step without proposals: width 1 in shape "token", the block's in shape "block".

Shapes: K proposals, W width of the block, n target features, H hidden size of the target.
"""

import time
from collections.abc import Iterator

import torch

from dflash.decoding.proposer import Proposer
from dflash.decoding.sampling import Dice, Sampling
from dflash.decoding.trace import Step, Trace
from dflash.decoding.verification import Proposal, Verdict, verify
from dflash.target import TargetModel


class Session:
    """The state of one decoding; `run` drives it and releases it."""

    def __init__(
        self,
        target: TargetModel,
        proposer: Proposer | None,
        prompt_ids: list[int],
        *,
        width: int,
        max_new_tokens: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
    ) -> None:
        self.trace = Trace(
            mode="target" if proposer is None else "draft",
            prompt_tokens=len(prompt_ids),
            block_size=width,
            temperature=sampling.temperature,
            rule=sampling.rule,
        )
        self._target = target
        self._layer_ids = proposer.layer_ids if proposer else ()
        self._drafting = proposer.start() if proposer else None
        self._cache = target.new_cache()
        self._prompt_ids = prompt_ids
        self._width = width
        self._remaining = max_new_tokens
        self._emitted = 0
        self._sampling = sampling
        self._dice = Dice(sampling.seed, max_new_tokens + width, target.device)
        self._stop_ids = stop_ids
        self._anchor: torch.Tensor | None = None  # [1, 1]

    def run(self) -> Iterator[Step]:
        """Yield every step as soon as it is done; closing the generator frees the caches at once."""
        try:
            yield self._record(self._prefill())
            while not self._finished:
                yield self._record(self._step())
        finally:
            self._cache = self._drafting = self._anchor = None

    @property
    def _finished(self) -> bool:
        return self.trace.stopped or self._remaining == 0

    @torch.inference_mode()
    def _prefill(self) -> Step:
        started = self._clock()
        ids = torch.tensor([self._prompt_ids], device=self._target.device)
        out = self._target.forward(ids, self._cache, layer_ids=self._layer_ids, keep_logits=1)
        verdict = verify(out.logits[0], Proposal.empty(self._target.device), self._sampling, self._dice, 0)
        first = self._clock()
        emitted = self._emit(verdict)
        if self._drafting and not self._finished:
            self._drafting.extend(out.features)
        ready = self._clock()
        self.trace.time_to_first_token_s = first - started
        self.trace.prefill_s = ready - started
        return Step(0, [], 0, verdict.correction, emitted, ready - first, first - started, 0.0)

    @torch.inference_mode()
    def _step(self) -> Step:
        started = self._clock()
        proposal = self._propose()
        drafted = self._clock()
        out = self._target.forward(
            self._block(proposal), self._cache, layer_ids=self._layer_ids, **self._positions_near_the_end()
        )
        judged = out.logits[0, : len(proposal.tokens) + 1]
        verdict = verify(judged, proposal, self._sampling, self._dice, self._emitted)
        verified = self._clock()
        self._forget(self._width - 1 - verdict.accepted)
        emitted = self._emit(verdict)
        kept = self._clock()
        if self._drafting and not self._finished:
            self._drafting.extend(out.features[:, : verdict.accepted + 1])
        done = self._clock()
        return Step(
            index=len(self.trace.steps),
            proposed=verdict.proposed,
            accepted=verdict.accepted,
            correction=verdict.correction,
            emitted=emitted,
            draft_s=(drafted - started) + (done - kept),
            verify_s=verified - drafted,
            overhead_s=kept - verified,
        )

    def _propose(self) -> Proposal:
        if self._drafting is None:
            return Proposal.empty(self._target.device)
        return self._drafting.propose(self._anchor, self._width - 1, self._sampling, self._dice)

    def _block(self, proposal: Proposal) -> torch.Tensor:
        """[1, W]: anchor, proposals, and copies of the anchor where proposals are missing (their rows are dropped)."""
        missing = self._width - 1 - len(proposal.tokens)
        return torch.cat([self._anchor, proposal.tokens[None], self._anchor.expand(1, missing)], dim=1)

    def _positions_near_the_end(self) -> dict[str, torch.Tensor]:
        """Explicit positions for a block that sticks out of the target's context.

        The block keeps its width, because results depend on it; rows beyond the last position are never emitted.
        """
        start = self._cache.get_seq_length()
        if start + self._width <= self._target.max_length:
            return {}
        positions = torch.arange(start, start + self._width, device=self._target.device)
        return {"position_ids": positions.clamp_(max=self._target.max_length - 1)[None]}

    def _forget(self, rejected: int) -> None:
        if rejected:
            self._cache.crop(-rejected)

    def _emit(self, verdict: Verdict) -> list[int]:
        """Accepted drafts and the correction, cut behind a stop token and at the limit; the last one is the anchor."""
        tokens = [*verdict.proposed[: verdict.accepted], verdict.correction][: self._remaining]
        stop = next((i for i, token in enumerate(tokens) if token in self._stop_ids), None)
        if stop is not None:
            tokens = tokens[: stop + 1]
            self.trace.stopped = True
        self._remaining -= len(tokens)
        self._emitted += len(tokens)
        self._anchor = torch.tensor([[tokens[-1]]], device=self._target.device)
        return tokens

    def _record(self, step: Step) -> Step:
        self.trace.steps.append(step)
        return step

    def _clock(self) -> float:
        if self._target.device.type == "cuda":
            torch.cuda.synchronize(self._target.device)
        return time.perf_counter()
