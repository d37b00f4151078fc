"""Opening the online source for one rank of a run: the right servers, a store without leftovers, keys of its own."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dflash.config import TrainConfig
from dflash.config_online_checks import SPARE_TOKENS
from dflash.errors import UserError
from dflash.online.capture_proof import require_capture, require_proof, server_info
from dflash.online.endpoints import Endpoints
from dflash.online.fetcher import FetchSettings, Layout
from dflash.online.generation import new_generation, rank_prefix, run_id, run_prefix
from dflash.online.gpus import gpus_of_server
from dflash.online.model_proof import require_same_model
from dflash.online.source import OnlineFeatures
from dflash.online.store import MooncakeStore, StoreSettings
from dflash.online.store_errors import StoreError
from dflash.online.tokenizer_proof import require_same_tokenizer
from dflash.target import TargetModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dflash.training.world import World

_LOG = logging.getLogger(__name__)


def open_online(
    config: TrainConfig, target: TargetModel, layer_ids: Sequence[int], world: "World", run_dir: Path
) -> OnlineFeatures:
    """The source of this rank. What earlier sittings of the run left in the store is removed first.

    Raises:
        UserError: a server or the store cannot be reached, or does not fit the run; every rank raises it.
    """
    endpoints = Endpoints.of(config)
    store = join_store(config, endpoints)
    try:
        layout = Layout(tuple(layer_ids), len(layer_ids) * target.hidden_size, target.dtype)

        def prepare() -> tuple[str, str]:
            if not endpoints.proved:
                prove(config, endpoints, layer_ids, store, target.tokenizer)
                require_room(config, store, layout, world.size)
            sweep_run(store, run_dir)
            return run_id(run_dir), new_generation()

        run, generation = world.on_main(prepare)
        online = config.online
        settings = FetchSettings(
            rank_prefix(run, generation, world.rank),
            in_flight=online.in_flight,
            answer_seconds=online.answer_seconds,
            patience=online.patience,
        )
        return OnlineFeatures(endpoints.servers, store, layout, settings, gpus=_gpus(endpoints))
    except BaseException:
        store.close()
        raise


def join_store(config: TrainConfig, endpoints: Endpoints) -> MooncakeStore:
    """A client that reads and removes.

    Raises:
        UserError: mooncake is not usable here, or the master does not answer.
    """
    online = config.online
    return MooncakeStore.connect(
        StoreSettings(
            endpoints.master,
            endpoints.metrics,
            host=endpoints.host,
            protocol=online.protocol,
            devices=",".join(online.rdma_devices),
        )
    )


def prove(
    config: TrainConfig,
    endpoints: Endpoints,
    layer_ids: Sequence[int],
    store: MooncakeStore,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """See that servers which run already do what this run needs: those started for it were given its settings.

    Raises:
        UserError: naming the server, and what is wrong with it.
    """
    for url in endpoints.servers:
        info = prove_server(url, layer_ids, store, tokenizer)
        if doubt := require_same_model(url, info, config.target.name, config.target.revision):
            _LOG.warning(doubt)
        length, room = config.data.max_length, info.get("max_req_input_len")
        if room is not None and length >= room:
            raise UserError(
                f"data.max_length = {length}, but server {url} takes documents of {room - 1} tokens at most: set "
                f"data.max_length={room - 1} or less, or start it with online.context_length={length + SPARE_TOKENS}."
            )


def prove_server(
    url: str, layer_ids: Sequence[int], store: MooncakeStore, tokenizer: "PreTrainedTokenizerBase"
) -> Mapping[str, Any]:
    """See that a server captures these layers, into this store, of a target that reads text as the trainer does.

    Returns its description of itself.

    Raises:
        UserError: naming the server, and what is wrong with it.
    """
    info = require_proof(url, layer_ids=layer_ids)
    require_same_tokenizer(url, tokenizer)
    try:
        require_capture(url, store)
    except StoreError as error:
        raise UserError(f"Whether server {url} captures could not be seen: {error}") from error
    return info


def require_room(config: TrainConfig, store: MooncakeStore, layout: Layout, ranks: int) -> None:
    """See that a store which is there already can hold what all ranks may have in it at a time.

    Raises:
        UserError: it is too small.
    """
    try:
        usage = store.usage()
    except StoreError as error:
        _LOG.warning("Whether the store is large enough cannot be told: %s", error)
        return
    length, in_flight = config.data.max_length, config.online.in_flight
    need = ranks * in_flight * length * layout.width * layout.dtype.itemsize
    if usage is not None and usage.capacity_bytes < need:
        raise UserError(
            f"The store at {store.settings.master} holds {usage.capacity_bytes / 2**30:.4g} GiB, less than the "
            f"{need / 2**30:.4g} GiB that {ranks} rank(s) with online.in_flight = {in_flight} documents of "
            f"data.max_length = {length} tokens may have there at a time: lower online.in_flight, or start the servers "
            "with a larger online.store_gib."
        )


def sweep_run(store: MooncakeStore, run_dir: Path) -> int:
    """Remove all that a run has in the store; returns how many objects there were.

    Raises:
        UserError: the store does not answer.
    """
    try:
        return store.sweep(run_prefix(run_dir))
    except StoreError as error:
        raise UserError(f"The store could not be cleared of what the run left there: {error}") from error


def _gpus(endpoints: Endpoints) -> dict[str, int]:
    """GPUs of each server: as the launcher says, else as the server itself does; a server without any is left out."""
    if endpoints.gpus is not None:
        return dict.fromkeys(endpoints.servers, endpoints.gpus)
    counts = {url: gpus_of_server(server_info(url)) for url in endpoints.servers}
    return {url: count for url, count in counts.items() if count}
