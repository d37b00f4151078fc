"""Metrics beyond `metrics.jsonl`: TensorBoard, W&B and trackio behind one small interface.

The run folder's JSONL stays the record; these are copies for people who live in such a tool. All are off by default
(`metrics.adapters`) and imported only when asked for. Keys come from the environment alone and are never written.
"""

import importlib.util
import io
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from dflash.config import MetricsConfig, TrainConfig
from dflash.errors import UserError
from dflash.files import write_atomically
from dflash.training.logged_once import LoggedOnce

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
_SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "TRACKIO_WRITE_TOKEN")
_WANDB_SECONDS = 60  # longest wait for its server at the start and at the end of a run
_REPLACING = ("tensorboard",)  # what is logged for a step again takes the place of what was there
_BOOKKEEPING = {"step", "batch", "kind"}

Say = Callable[[str], None]

LOG = logging.getLogger("dflash")


class MetricSink(Protocol):
    """Somewhere that metrics go."""

    def log(self, record: dict[str, Any], step: int) -> None:
        """Take in one line of `metrics.jsonl`, which belongs to optimizer step `step`."""

    def close(self) -> None:
        """Write out what is pending; bounded in time."""


def check_adapters(config: MetricsConfig) -> None:
    """Refuse adapters that cannot work here, before anything is loaded; imports none of them.

    Raises:
        UserError: a package is missing, or the environment contradicts the config.
    """
    for name in config.adapters:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UserError(
                f"metrics.adapters names {name!r}, which is not installed: run `pip install {_PACKAGES[name]}` "
                "or take it out of metrics.adapters."
            )
    if "wandb" in config.adapters:
        _check_wandb_environment()


def open_sinks(
    config: TrainConfig, run_dir: Path, *, after_step: int = 0, say: Say = LOG.info, warn: Say = LOG.warning
) -> "Sinks":
    """Open every configured adapter for a run; without any, the result does nothing.

    Args:
        after_step: the step a resumed run goes on from; 0 for a new one.
        say: takes a sentence for each adapter: where its metrics can be seen.
        warn: takes a sentence when one fails during the run.

    Raises:
        UserError: an adapter cannot be started; those already open are closed.
    """
    check_adapters(config.metrics)
    sinks = Sinks(warn)
    try:
        for name in config.metrics.adapters:
            sink = _ADAPTERS[name](config, Path(run_dir), after_step, say)
            if name not in _REPLACING:
                sink = LoggedOnce(sink, Path(run_dir) / f".{name}-cursor.json", afresh=after_step == 0)
            sinks.add(name, sink)
    except BaseException:
        sinks.close()
        raise
    return sinks


def scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """`kind/name` and value of every number in a record; lists give one per entry, numbered from 1 (slots do).

    What a group such as `online` holds is named `kind/group/name`. Text and missing values have no place in a chart and
    are left out.
    """
    yield from _scalars({k: v for k, v in record.items() if k not in _BOOKKEEPING}, record.get("kind", "train"))


def _scalars(values: dict[str, Any], kind: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{kind}/{name}")
        elif isinstance(value, Real):
            yield f"{kind}/{name}", float(value)
        elif isinstance(value, list):
            numbered = ((i, item) for i, item in enumerate(value, 1) if isinstance(item, Real))
            yield from ((f"{kind}/{name}/{i}", float(item)) for i, item in numbered)


class Sinks:
    """All open adapters as one. One that fails is reported and switched off; training goes on without it."""

    def __init__(self, warn: Say = LOG.warning) -> None:
        self._open: dict[str, MetricSink] = {}
        self._warn = warn

    def add(self, name: str, sink: MetricSink) -> None:
        self._open[name] = sink

    @property
    def names(self) -> list[str]:
        """The adapters that are still in use."""
        return list(self._open)

    def log(self, record: dict[str, Any], step: int) -> None:
        for name, sink in list(self._open.items()):
            try:
                sink.log(record, step)
            except Exception as error:  # noqa: BLE001 - a chart is not worth a training run; the reason is said
                del self._open[name]
                self._warn(f"{name} failed at step {step} and is switched off ({_reason(error)}); training goes on.")

    def close(self) -> None:
        while self._open:
            name, sink = self._open.popitem()
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - as above: the run itself has ended well
                self._warn(f"{name} could not be closed ({_reason(error)}); its last metrics may be missing.")


class TensorBoardSink:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, config: TrainConfig, run_dir: Path, after_step: int, say: Say) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps that the resumed run makes again replace those the interrupted one had logged.
        purge = after_step + 1 if after_step else None
        with _starting("TensorBoard"):
            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)
        say(f"TensorBoard: tensorboard --logdir {run_dir / 'tensorboard'}")

    def log(self, record: dict[str, Any], step: int) -> None:
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A W&B run; offline, in `RUN/wandb`, where its server is out of reach or `WANDB_MODE=offline` asks for it.

    A resumed run goes on with the same W&B run. Steps are an ordinary metric there, since W&B drops whatever is logged
    at a step it has passed, as a resumed run does.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, after_step: int, say: Say) -> None:
        with _starting("W&B"):
            import wandb

            mode = _wandb_mode()
            (run_dir / "wandb").mkdir(exist_ok=True)
            self._run = wandb.init(
                project=config.metrics.project,
                name=run_dir.name,
                id=_wandb_id(run_dir / "wandb" / "run_id"),
                resume="allow" if after_step and mode == "online" else None,
                dir=str(run_dir),
                mode=mode,
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=_WANDB_SECONDS, finish_timeout=_WANDB_SECONDS
                ),
            )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        where = self._run.url if mode == "online" else f"offline in {run_dir / 'wandb'}; `wandb sync` uploads it"
        say(f"W&B: {where}")

    def log(self, record: dict[str, Any], step: int) -> None:
        self._run.log({**dict(scalars(record)), "step": step})

    def close(self) -> None:
        self._run.finish()


class TrackioSink:
    """A trackio run: in its local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    def __init__(self, config: TrainConfig, run_dir: Path, after_step: int, say: Say) -> None:
        remote = _trackio_remote()
        with _starting("trackio"), redirect_stdout(io.StringIO()):  # it prints advice that is ours to give
            import trackio

            self._trackio = trackio
            self._run = trackio.init(
                project=config.metrics.project,
                name=run_dir.name,
                config=config.model_dump(mode="json"),
                resume="allow" if after_step else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        say(f"trackio: {remote or f'local; trackio show --project {config.metrics.project}'}")

    def log(self, record: dict[str, Any], step: int) -> None:
        self._run.log(dict(scalars(record)), step=step)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()  # unlike the run's own, it also tells trackio's exit hook that all is done


_ADAPTERS: dict[str, Callable[[TrainConfig, Path, int, Say], MetricSink]] = {
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
    "trackio": TrackioSink,
}


@contextmanager
def _starting(name: str) -> Iterator[None]:
    """Whatever goes wrong while a tracker starts becomes one sentence, without any key in it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} could not be started ({_reason(error)}): mend that or take it out of metrics.adapters."
        ) from error


def _check_wandb_environment() -> None:
    """Refuse what would make W&B ask on the terminal, or do nothing at all."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode not in ("", "online", "offline"):
        raise UserError(
            f"metrics.adapters names 'wandb', but WANDB_MODE is {mode!r}: set it to online or offline, or drop wandb."
        )
    if mode != "offline" and not os.environ.get("WANDB_API_KEY"):
        raise UserError(
            "metrics.adapters names 'wandb', but WANDB_API_KEY is not set: set it, "
            "or set WANDB_MODE=offline to keep the metrics in the run folder."
        )


def _wandb_mode() -> str:
    """As the environment says, else whatever the network allows."""
    import wandb

    from dflash.hub import endpoint_is_reachable

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if endpoint_is_reachable(wandb.Settings().base_url) else "offline"


def _wandb_id(path: Path) -> str:
    """Chosen once per run folder, so that a folder of the same name elsewhere is another W&B run."""
    if not path.is_file():
        write_atomically(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def _trackio_remote() -> str | None:
    """Where trackio will send metrics, None for this machine.

    Raises:
        UserError: that place is out of reach; trackio itself would go on retrying.
    """
    from dflash.hub import endpoint_is_reachable, hub_is_reachable

    if space := os.environ.get("TRACKIO_SPACE_ID"):
        if not hub_is_reachable():
            raise UserError(
                f"TRACKIO_SPACE_ID names the Space {space!r}, but the Hugging Face hub cannot be reached from here: "
                "unset it to log to this machine."
            )
        return f"Space {space}"
    if server := os.environ.get("TRACKIO_SERVER_URL"):  # may hold a write token, so it is never printed
        if not endpoint_is_reachable(server):
            raise UserError(
                "The server that TRACKIO_SERVER_URL names cannot be reached from here: unset it to log to this machine."
            )
        return "the server of TRACKIO_SERVER_URL"
    return None


def _reason(error: Exception) -> str:
    """The first line of an error's message, any key taken out."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].rstrip(" .:")
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "***")
    return text
