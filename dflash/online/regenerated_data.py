"""The data of a run whose answers its own servers regenerate (`online.regenerate`): a file in the run's folder.

The first rank asks the servers, before anything else of the run depends on the answers; the others wait. The finished
file replaces `data.train`, so the run itself knows nothing of how its data came about, and resuming reads the same file
again: no answer is asked for twice.
"""

import logging
from typing import TYPE_CHECKING

from dflash.config import DataConfig, TrainConfig
from dflash.errors import UserError
from dflash.online.answer_file import REGENERATED
from dflash.online.answering import AnswerSettings, AskSettings
from dflash.online.endpoints import Endpoints
from dflash.online.regenerate import Order, regenerate

if TYPE_CHECKING:
    from dflash.training.run_folder import RunFolder
    from dflash.training.world import World

_LOG = logging.getLogger(__name__)


def training_data(config: TrainConfig, tokenizer, run: "RunFolder", world: "World") -> DataConfig:
    """`config.data`, its sources replaced by regenerated ones where the run wants that. Every rank calls it.

    Raises:
        UserError: no server answers, a source cannot be read, the run's file was made with other settings, or a rank
            does not see it.
    """
    if config.features.source != "online" or not config.online.regenerate:
        return config.data
    out, online = run.path / REGENERATED, config.online
    answers = AnswerSettings(
        temperature=online.regenerate_temperature,
        max_new_tokens=online.regenerate_tokens,
        max_length=config.data.max_length,
        last_turn_only=config.data.last_turn_only,
        seed=config.run.seed,
    )
    order = Order(config.data, config.target.name, config.target.revision, answers, keeps_to_data=True)
    asking = AskSettings(online.regenerate_in_flight, online.answer_seconds, online.patience)

    def make() -> None:
        servers = Endpoints.of(config).servers if not out.exists() else ()
        result = regenerate(order, out, servers, tokenizer, asking, say=_LOG.info)
        reasons = "".join(f"; {count} left out: {reason}" for reason, count in result["reasons"])
        _LOG.info(
            "Trained on are %d conversations with %d regenerated answer tokens%s.",
            result["conversations"], result["tokens"], reasons,
        )  # fmt: skip

    world.on_main_for_long(make)
    if not all(world.gather(out.is_file())):
        raise UserError(
            f"Not every rank sees {str(out)!r}: put the run folder on a disk that all machines share (--runs)."
        )
    return config.data.model_copy(update={"train": [str(out)], "subset": None, "limit": None, "streaming": False})
