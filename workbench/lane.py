"""One lane of the race: a decoding trace with its texts, in the form the page draws."""

from collections.abc import Sequence
from typing import Any

from dflash.decoding.pieces import PieceDecoder
from dflash.decoding.trace import Step, Trace


class Lane:
    """The texts of one decoding, grown step by step: `texts` has one entry per step that was taken in."""

    def __init__(self, tokenizer, prompt_ids: list[int]) -> None:
        self.texts: list[dict[str, Any]] = []
        self._decoder = PieceDecoder(tokenizer, prompt_ids)

    def take(self, trace: Trace) -> None:
        """Add the steps of `trace` that are not here yet."""
        for step in trace.steps[len(self.texts) :]:
            self.texts.append(self._texts(step))

    def payload(self, trace: Trace, done: bool) -> dict[str, Any]:
        """What the page draws."""
        return lane_payload(trace, self.texts, done)

    def _texts(self, step: Step) -> dict[str, Any]:
        guesses = self._decoder.fork()
        proposed = [guesses.push(token) for token in step.proposed]
        own = self._decoder.fork()
        for token in step.proposed[: step.accepted]:
            own.push(token)
        return {
            "proposed": proposed,
            "correction": own.push(step.correction),
            "emitted": [self._decoder.push(token) for token in step.emitted],
        }


def lane_payload(trace: Trace, texts: Sequence[dict[str, Any]], done: bool) -> dict[str, Any]:
    """The steps whose texts are there. Times count from the request, in seconds of engine time."""
    steps, end = [], 0.0
    for step, words in zip(trace.steps, texts, strict=False):
        start = end
        # The prefill step ends for the reader when its token is there; the draft takes in the prompt after that.
        end = trace.prefill_s if step.index == 0 else start + step.seconds
        steps.append(
            {
                "index": step.index,
                "start_s": round(start, 6),
                "end_s": round(trace.time_to_first_token_s if step.index == 0 else end, 6),
                "accepted": step.accepted,
                **words,
                "draft_s": round(step.draft_s, 6),
                "verify_s": round(step.verify_s, 6),
                "overhead_s": round(step.overhead_s, 6),
            }
        )
    started = len(trace.steps) > 1
    return {
        "steps": steps,
        "done": done,
        "ttft_s": trace.time_to_first_token_s,
        "total_s": end,
        "tok_s": trace.tok_s if started else None,
        "tau": trace.tau if started else None,
        "forwards": len(trace.decode_steps),
    }


def empty_lane() -> dict[str, Any]:
    """A lane that has not started."""
    return {"steps": [], "done": False, "total_s": 0.0}
