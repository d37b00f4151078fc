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
from dflash.online.captured_layers import captured_layers
from dflash.online.deployment import Deployment, is_started_here, trainers_of
from dflash.online.rank import is_launched
from dflash.online.readiness import online_machine_complaints, online_target_complaints
from dflash.target_facts import TargetFacts, target_facts
from dflash.training.draft_checks import start_complaints
from dflash.training.estimate import Estimate, estimate
from dflash.training.preflight import notes, rank_complaints, size_complaints, target_complaints
from dflash.training.readiness import device_complaints, folder_complaints, machine_complaints, memory_doubts
from dflash.training.resume_notes import resume_notes


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
    doubts: tuple[Complaint, ...] = ()  # what may well fail on this machine, though it may start; notes hold it, too
    deployment: Deployment | None = None  # what `dflash train` starts, where it does; None as well for unknown targets

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
    world_size: int | None = None,
    *,
    resumed: bool = False,
    new_folder: bool = True,
    guess_device: bool = True,
) -> RunPlan:
    """Plan a run of `world_size` ranks from the settings in `tree`; None: as many as are started, usually one.

    `new_folder`: whether `run_dir` has to be free. `guess_device`: whether a GPU that seems not to be here counts as
    lacking; where a run starts right away, torch itself has the last word.
    """
    found = _Found()

    def with_target(config: TrainConfig) -> list[Complaint]:
        found.conversations = count_conversations(config.data.train, config.data.limit)
        found.ranks = world_size or (trainers_of(config) if is_started_here(config) else 1)
        complaints = list(rank_complaints(config, found.ranks, resumed=resumed))
        try:
            found.facts = target_facts(config.target.name, config.target.revision)
        except UserError as error:
            complaints.append(Complaint(("target",), str(error)))
        if found.facts is not None:
            complaints += target_complaints(config, found.facts)
            found.deployment = _deployment(config, found.facts, found.ranks, run_dir if resumed else None)
            complaints += online_target_complaints(config, found.facts, found.deployment)
        return [
            *complaints,
            *start_complaints(config, found.facts),
            *size_complaints(config, found.conversations),
        ]

    config, faults = judge(tree, also=with_target)
    kind, facts = assumed_device_type(config.run.device), found.facts
    numbers = estimate(config, facts, found.ranks, conversations=found.conversations, device_type=kind)
    online = config.features.source == "online" and not is_launched()  # else the launcher has looked at all that
    lacking = [
        *machine_complaints(config, run_dir, numbers),
        *(online_machine_complaints(config, found.deployment) if online else ()),
        *(device_complaints(config) if guess_device else ()),
        *(folder_complaints(run_dir) if new_folder else ()),
    ]
    doubts = tuple(memory_doubts(config, numbers, kind))
    remarks = resume_notes(run_dir, config, numbers.conversations) if resumed else ()
    faulty = [field for complaint in faults for field in complaint.fields]
    return RunPlan(
        origin=origin,
        config=config,
        run_dir=run_dir,
        facts=facts,
        estimate=numbers,
        notes=(*notes(config, facts, numbers.steps), *remarks, *(doubt.sentence for doubt in doubts)),
        faults=tuple(faults),
        # What hangs on a faulty setting was judged with its default.
        lacking=tuple(complaint for complaint in lacking if not complaint.touches(faulty)),
        doubts=doubts,
        deployment=found.deployment,
    )


@dataclass
class _Found:
    """What became known while the config was judged."""

    facts: TargetFacts | None = None
    conversations: int | None = None
    ranks: int = 1
    deployment: Deployment | None = None


def _deployment(config: TrainConfig, facts: TargetFacts, ranks: int, run_dir: Path | None) -> Deployment | None:
    """What `dflash train` starts besides itself; None where that is nothing, or hangs on unknown layers."""
    layer_ids = captured_layers(config, facts, run_dir)
    if not is_started_here(config) or is_launched() or not layer_ids:
        return None
    return Deployment.of(config, facts, layer_ids, ranks)
