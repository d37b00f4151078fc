"""What a step costs decides what an accepted token is worth.

    speed-up = tau * t_target / (t_draft + t_verify + t_overhead)

`t_target` is one token of the target alone in its fastest shape; the others are parts of one step with draft. Any unit
of time will do, as long as it is one.
"""

from dataclasses import dataclass

from dflash.errors import UserError


@dataclass(frozen=True)
class StepCost:
    """Milliseconds of one token of the target alone, and of the parts of one step with draft."""

    target: float
    draft: float
    verify: float
    overhead: float

    def __post_init__(self) -> None:
        for name in ("target", "draft", "verify", "overhead"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"The time t_{name} is {value} ms: give 0 or more.")
        if self.target == 0 or self.step == 0:
            raise UserError(
                "A token of the target alone and a step with draft must both take some time: give more than 0."
            )

    @property
    def step(self) -> float:
        """Milliseconds of one whole step with draft."""
        return self.draft + self.verify + self.overhead

    @property
    def break_even_tau(self) -> float:
        """Tokens per forward that a draft has to reach before anything is gained."""
        return self.step / self.target

    def speedup(self, tau: float) -> float:
        """Times as fast as the target alone when a step yields `tau` tokens.

        Raises:
            UserError: tau is below 1, less than a target forward always yields.
        """
        if not 1 <= tau < float("inf"):
            raise UserError(f"tau is {tau}: every target forward yields at least 1 token, so give 1 or more.")
        return tau / self.break_even_tau
