"""The record of one decoding: every step with what was proposed, what stood, and how long each part took."""

from dataclasses import asdict, dataclass, field
from typing import Any

from dflash.errors import UserError


@dataclass(frozen=True)
class Step:
    """One target forward. Step 0 is the prefill, which emits the first token; drafting starts at step 1.

    `emitted` is the accepted drafts and the correction, cut at a stop token or the token limit. Times are seconds:
    `draft_s` drafting and taking in features, `verify_s` the target's forward and the verdict, `overhead_s` the rest.
    `gap`, where asked for, is by how many logits one-token shape prefers another token than the first one it
    disagrees with in `emitted` (None: no disagreement, or not asked for).
    """

    index: int
    proposed: list[int]
    accepted: int
    correction: int
    emitted: list[int]
    draft_s: float
    verify_s: float
    overhead_s: float
    gap: float | None = None

    @property
    def seconds(self) -> float:
        return self.draft_s + self.verify_s + self.overhead_s


@dataclass
class Trace:
    """One decoding by the target alone ("target") or with the draft ("draft"); it grows while the stream runs.

    `time_to_first_token_s` ends with the first token; `prefill_s` also covers the draft taking in the prompt.
    """

    mode: str
    prompt_tokens: int
    block_size: int
    temperature: float = 0.0
    rule: str = "target"
    steps: list[Step] = field(default_factory=list)
    prefill_s: float = 0.0
    time_to_first_token_s: float = 0.0
    stopped: bool = False

    @property
    def tokens(self) -> list[int]:
        """All emitted ids, a final stop token included."""
        return [token for step in self.steps for token in step.emitted]

    @property
    def decode_steps(self) -> list[Step]:
        """The steps behind the prefill."""
        return self.steps[1:]

    @property
    def decoded_tokens(self) -> int:
        """Tokens emitted after the prefill's one."""
        return sum(len(step.emitted) for step in self.decode_steps)

    @property
    def tau(self) -> float:
        """Tokens emitted per target forward, prefill and its token left out; 0 when nothing was decoded.

        A last block cut by a stop token or the limit counts with what it emitted, so this is never flattering;
        `AcceptanceCounts.tau` counts that block in full.
        """
        return self.decoded_tokens / len(self.decode_steps) if self.decode_steps else 0.0

    @property
    def seconds(self) -> float:
        """Decoding time after the prefill, without whatever the consumer did between steps."""
        return sum(step.seconds for step in self.decode_steps)

    @property
    def tok_s(self) -> float:
        """Tokens per second after the prefill; 0 when nothing was decoded."""
        return self.decoded_tokens / self.seconds if self.decode_steps else 0.0

    @property
    def accepted_histogram(self) -> list[int]:
        """h[i] = number of steps with i accepted drafts, i = 0..block_size-1."""
        histogram = [0] * self.block_size
        for step in self.decode_steps:
            histogram[step.accepted] += 1
        return histogram

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form with the derived numbers beside the recorded ones."""
        derived = {"tokens": self.tokens, "tau": self.tau, "seconds": self.seconds, "tok_s": self.tok_s}
        return asdict(self) | derived

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Trace":
        """The inverse of `to_dict`.

        Raises:
            UserError: the record is not that of a trace.
        """
        try:
            own = {name: record[name] for name in cls.__dataclass_fields__}
            own["steps"] = [Step(**step) for step in own["steps"]]
            return cls(**own)
        except (KeyError, TypeError) as error:
            raise UserError(f"This record is no decoding trace ({error}): record the decoding again.") from error
