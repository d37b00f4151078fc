"""A run before it begins: its config checked in every respect, and all that follows from it. Nothing is loaded.

The command line, its dry run and the workbench all start from this one object.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.complaints import Complaint, together
from dflash.config import TrainConfig, judge
from dflash.data.sources import count_conversations
from dflash.devices import assumed_device_type
from dflash.errors import UserError
from dflash.target_facts import TargetFacts, target_facts
from dflash.training.estimate import Estimate, estimate
from dflash.training.preflight import notes, rank_complaints, target_complaints
from dflash.training.readiness import device_complaints, folder_complaints, machine_complaints


@dataclass(frozen=True)
class RunPlan:
    """A config with everything that was derived from it. `origin` names the config in complaints."""

    origin: str
    config: TrainConfig  # with `faults`, the faulty settings have their defaults
    run_dir: Path
    facts: TargetFacts | None
    estimate: Estimate
    notes: tuple[str, ...]
    faults: tuple[Complaint, ...]  # wrong on every machine
    lacking: tuple[Complaint, ...]  # what keeps this machine, though not every machine, from starting it

    def refuse(self, *, also_lacking: bool) -> None:
        """
        Raises:
            UserError: every fault in one message, and on demand all that this machine lacks.
        """
        complaints = [*self.faults, *(self.lacking if also_lacking else ())]
        if complaints:
            raise UserError(together(self.origin, complaints))


def plan_run(
    tree: dict[str, Any],
    origin: str,
    run_dir: Path,
    world_size: int = 1,
    *,
    resumed: bool = False,
    new_folder: bool = True,
    guess_device: bool = True,
) -> RunPlan:
    """Plan a run of `world_size` ranks from the settings in `tree`.

    `new_folder`: whether `run_dir` has to be free. `guess_device`: whether a GPU that seems not to be here counts as
    lacking; where a run starts right away, torch itself has the last word.
    """
    facts: list[TargetFacts | None] = [None]

    def with_target(config: TrainConfig) -> list[Complaint]:
        complaints = list(rank_complaints(config, world_size, resumed=resumed))
        try:
            facts[0] = target_facts(config.target.name, config.target.revision)
        except UserError as error:
            return [*complaints, Complaint(("target",), str(error))]
        return complaints if facts[0] is None else [*complaints, *target_complaints(config, facts[0])]

    config, faults = judge(tree, also=with_target)
    count = count_conversations(config.data.train, config.data.limit)
    kind = assumed_device_type(config.run.device)
    numbers = estimate(config, facts[0], world_size, conversations=count, device_type=kind)
    lacking = [
        *machine_complaints(config, facts[0], run_dir, numbers),
        *(device_complaints(config) if guess_device else ()),
        *(folder_complaints(run_dir) if new_folder else ()),
    ]
    faulty = [field for complaint in faults for field in complaint.fields]
    return RunPlan(
        origin=origin,
        config=config,
        run_dir=run_dir,
        facts=facts[0],
        estimate=numbers,
        notes=tuple(notes(config, facts[0], numbers.steps)),
        faults=tuple(faults),
        # What hangs on a faulty setting was judged with its default.
        lacking=tuple(complaint for complaint in lacking if not complaint.touches(faulty)),
    )
