"""`dflash serve-target`: servers, and usually the store, for ranks that are started elsewhere."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dflash.complaints import Complaint, together
from dflash.config import TrainConfig, judge
from dflash.config_effects import OF_SERVERS
from dflash.data.tokenizer import load_tokenizer
from dflash.errors import UserError
from dflash.online.captured_layers import captured_layers
from dflash.online.deployment import Deployment, is_started_here, trainers_of
from dflash.online.engines import Engines, Policy
from dflash.online.follow import errors_into
from dflash.online.leftovers import Leftovers
from dflash.online.opening import join_store, prove_server
from dflash.online.readiness import online_machine_complaints, online_target_complaints
from dflash.online.server import progress_line
from dflash.online.stop_requests import StopRequests
from dflash.target_facts import TargetFacts, target_facts
from dflash.training.preflight import target_complaints

_TICK_SECONDS = 0.5


def plan_serving(tree: dict[str, Any], origin: str) -> tuple[TrainConfig, Deployment]:
    """What to start on this machine for the config in `tree`, whose data and run folder are not looked at.

    Raises:
        UserError: all that is wrong with the config, and that this machine lacks for serving.
    """
    found: list[Deployment] = []

    def with_target(config: TrainConfig) -> list[Complaint]:
        if not is_started_here(config):
            return [
                Complaint(
                    ("features.source", "online.servers"),
                    "`dflash serve-target` starts servers: set features.source=online, and remove online.servers.",
                )
            ]
        complaints = [*_unknown_ranks(config), *_of_target(config, found)]
        return [*complaints, *online_machine_complaints(config, found[0] if found else None)]

    config, faults = judge(tree, also=with_target)
    if faults:
        raise UserError(together(origin, faults))
    return config, found[0]


def overrides_for_ranks(config: TrainConfig, deployment: Deployment) -> list[str]:
    """What a training node adds to the same config: where everything is, and no servers of its own."""
    endpoints = deployment.endpoints
    given = [name for name in OF_SERVERS if name.partition(".")[2] in config.online.model_fields_set]
    extra = ["online.host"] if config.online.host else []  # each machine's own
    return [
        f"online.servers=[{','.join(endpoints.servers)}]",
        f"online.master={endpoints.master}",
        *(f"{name}=null" for name in (*given, *extra)),
    ]


def serve(
    config: TrainConfig, deployment: Deployment, logs: Path, say: Callable[[str], None], ready: Callable[[], None]
) -> None:
    """Start what the deployment says, call `ready` once every server has proved itself, and watch until a signal.

    Raises:
        PartFailed, ChildFailed: a part ended by itself and was not started again.
        UserError: a server does not capture as it should.
    """
    online = config.online
    tokenizer = load_tokenizer(config.target.name, config.target.revision)
    policy = Policy(online.max_restarts if online.on_failure == "restart" else 0, online.start_seconds)
    logs.mkdir(parents=True, exist_ok=True)
    with StopRequests() as stops, Engines(deployment, logs, policy, say) as engines:
        engines.start_master()
        with errors_into(logs / "store-client.log"):  # Mooncake's own lines
            store = join_store(config, deployment.endpoints)
        with store:
            layer_ids = deployment.servers[0].layer_ids
            engines.start_servers(lambda url: prove_server(url, layer_ids, store, tokenizer))
            engines.wait_ready(lambda: stops.count > 0, progress_line)
            progress_line("")
            if engines.all_ready:
                ready()
            leftovers = Leftovers(store)
            while not stops.count:
                engines.tick()
                if removed := leftovers.tick():
                    say(f"Removed {removed} object(s) that runs had left in the store.")
                time.sleep(_TICK_SECONDS)


def _unknown_ranks(config: TrainConfig) -> list[Complaint]:
    online = config.online
    if online.trainers is not None or online.store_gib is not None:
        return []
    return [
        Complaint(
            ("online.trainers", "online.store_gib"),
            "online.trainers is not set, so nobody knows how large the store has to be: set it to the number of ranks "
            "on all training nodes, or set online.store_gib.",
        )
    ]


def _of_target(config: TrainConfig, found: list[Deployment]) -> list[Complaint]:
    """Complaints about the target; puts the deployment into `found` where there is one."""
    try:
        facts = _facts(config)
    except UserError as error:
        return [Complaint(("target",), str(error))]
    layer_ids = captured_layers(config, facts)
    if not layer_ids:
        return [
            Complaint(
                ("draft.target_layer_ids", "draft.init", "target"),
                "draft.target_layer_ids cannot be told from this config and target: set them.",
            )
        ]
    found.append(Deployment.of(config, facts, layer_ids, trainers_of(config), trains_here=False))
    return [
        *target_complaints(config, facts),
        *online_target_complaints(config, facts, found[0]),
    ]


def _facts(config: TrainConfig) -> TargetFacts:
    """Of the target; those of a hub target that was never used here are fetched."""
    name, revision = config.target.name, config.target.revision
    facts = target_facts(name, revision)
    if facts is None:
        from dflash.target import load_target_config

        load_target_config(name, revision)  # leaves it in the local cache
        facts = target_facts(name, revision)
    if facts is None:
        raise UserError(f"Nothing is known about target {name!r}: give a hub id, or a folder.")
    return facts
