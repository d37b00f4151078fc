"""The three ablations: which setting of the base config each one varies, over which values."""

from dataclasses import dataclass

from dflash.errors import UserError


@dataclass(frozen=True)
class Ablation:
    """One setting of a base config varied; everything else, data and seeds included, stays as it is there."""

    number: str  # of the notebook
    name: str  # of the result file
    setting: str  # section.key of the config
    values: tuple[float, ...]
    baseline: float  # the base config's own value, which the others are compared with
    small: tuple[float, ...]  # values of the small setting, the baseline among them
    used: tuple[int, ...] = (8,)  # block sizes with which each draft is judged

    def override(self, value: float) -> str:
        return f"{self.setting}={value:g}"

    def run_name(self, value: float, seed: int) -> str:
        """Of the run's folder. Runs with the base config's own value are one and the same for all ablations."""
        if value == self.baseline:
            return f"base-seed{seed}"
        return f"{self.setting.partition('.')[2]}-{value:g}-seed{seed}"


ABLATIONS = (
    Ablation("02", "02_number_of_anchors", "blocks.num_anchors", (8, 32, 64, 128, 256), baseline=32, small=(8, 32)),
    # The largest value leaves the weights all but equal: exp(-6 / 1000) = 0.994 at the last of 8 slots.
    Ablation("03", "03_decay", "blocks.gamma", (1.5, 2.5, 4, 7, 1000), baseline=2.5, small=(2.5, 1000)),
    Ablation("04", "04_block_size", "draft.block_size", (4, 8, 16), baseline=8, small=(4, 8), used=(4, 8, 16)),
)


def ablation(number: str) -> Ablation:
    """The ablation of notebook `number`, such as "02".

    Raises:
        UserError: there is none.
    """
    for one in ABLATIONS:
        if one.number == number:
            return one
    raise UserError(f"There is no ablation {number!r}: choose one of {', '.join(a.number for a in ABLATIONS)}.")
