"""One lane of the race: a decoding trace in the form the page draws, grown step by step."""

from typing import Any

from dflash.decoding.pieces import PieceDecoder
from dflash.decoding.trace import Step, Trace


class Lane:
    """Texts and times of one decoding. Times count from the request, in seconds of engine time."""

    def __init__(self, tokenizer, prompt_ids: list[int]) -> None:
        self._decoder = PieceDecoder(tokenizer, prompt_ids)
        self._steps: list[dict[str, Any]] = []
        self._end = 0.0

    def take(self, trace: Trace) -> None:
        """Add the steps of `trace` that are not here yet."""
        for step in trace.steps[len(self._steps) :]:
            self._steps.append(self._step(step, trace))

    def payload(self, trace: Trace, done: bool) -> dict[str, Any]:
        """What the page draws."""
        started = len(trace.steps) > 1
        return {
            "steps": list(self._steps),  # a copy: the server sends only what differs from the last picture
            "done": done,
            "ttft_s": trace.time_to_first_token_s,
            "total_s": self._end,
            "tok_s": trace.tok_s if started else None,
            "tau": trace.tau if started else None,
            "forwards": len(trace.decode_steps),
        }

    def _step(self, step: Step, trace: Trace) -> dict[str, Any]:
        start = self._end
        # The prefill step ends for the reader when its token is there; the draft takes in the prompt after that.
        self._end = trace.prefill_s if step.index == 0 else start + step.seconds
        shown = trace.time_to_first_token_s if step.index == 0 else self._end
        guesses = self._decoder.fork()
        proposed = [guesses.push(token) for token in step.proposed]
        own = self._decoder.fork()
        for token in step.proposed[: step.accepted]:
            own.push(token)
        return {
            "index": step.index,
            "start_s": round(start, 6),
            "end_s": round(shown, 6),
            "proposed": proposed,
            "accepted": step.accepted,
            "correction": own.push(step.correction),
            "emitted": [self._decoder.push(token) for token in step.emitted],
            "draft_s": round(step.draft_s, 6),
            "verify_s": round(step.verify_s, 6),
            "overhead_s": round(step.overhead_s, 6),
        }


def empty_lane() -> dict[str, Any]:
    """A lane that has not started."""
    return {"steps": [], "done": False, "total_s": 0.0}
