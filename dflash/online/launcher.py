"""`dflash train` with features.source: online on one machine: the store, the servers and the ranks, all supervised.

The order is: lock the run, start the master and join the store, start the servers, wait until each has proved that it
captures what the run needs, start torchrun, watch everything, and end it in the reverse order. The launcher holds the
run folder for all of that time; the ranks, which end with it, take no lock of their own.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.config import TrainConfig
from dflash.data.tokenizer import load_tokenizer
from dflash.errors import UserError
from dflash.online.deployment import Deployment
from dflash.online.engines import Engines, PartFailed, Policy
from dflash.online.follow import Follower, errors_into
from dflash.online.opening import join_store, prove_server, sweep_run
from dflash.online.rank import rank_log
from dflash.online.server import progress_line
from dflash.online.stop_requests import StopRequests
from dflash.online.store import MooncakeStore, key_prefix
from dflash.online.store_errors import StoreError
from dflash.online.trainers import Trainers
from dflash.training.run_folder import RunFolder

_TICK_SECONDS = 0.25
_SIGN_OF_LIFE_SECONDS = 5.0  # between two of them while no rank gives any
_FINISH_SECONDS = 120.0  # for a step and a checkpoint when a part is gone and the others still serve
_FIND_MASTER_SECONDS = 15.0  # a client needs a while to find a master that was started again
_HOPELESS_SECONDS = 3.0  # the same when no document can be captured any more: the step will not end


@dataclass(frozen=True)
class Launch:
    """What is started. `fresh` and `again` are the ranks' arguments of `dflash`: to begin, and to go on."""

    config: TrainConfig
    deployment: Deployment
    run_dir: Path
    resume: bool
    fresh: Sequence[str]
    again: Sequence[str]


class Launcher:
    """Runs one training from the first process to the last."""

    def __init__(self, launch: Launch, say: Callable[[str], None]) -> None:
        """`say` is told, in sentences, what happens; logs/launcher.log has them as well."""
        online = launch.config.online
        self._launch, self._run, self._tell = launch, RunFolder(launch.run_dir), say
        self._logs = launch.run_dir / "logs"
        self._restarts_left = online.max_restarts if online.on_failure == "restart" else 0
        policy = Policy(self._restarts_left, online.start_seconds)
        self._engines = Engines(launch.deployment, self._logs, policy, self._say)
        self._trainers = Trainers(launch.deployment, self._logs)
        self._stops = StopRequests()
        self._asked = 0  # signals that were heeded
        self._seen_alive = 0.0

    def run(self) -> Path | None:
        """The draft's folder when training finished, None when it was asked to stop.

        Raises:
            PartFailed, ChildFailed: a part ended by itself and was not started again.
            UserError: the run, a server or the machine is not as it should be.
        """
        if self._launch.resume:
            self._run.check_is_run()
        with self._stops, self._run.locked():  # before anything is written: it may be another process's run
            try:
                self._logs.mkdir(exist_ok=True)
                self._run.forget_failure()
                with self._start_engines() as store:
                    if self._engines.all_ready:
                        return self._train(store)
                self._set_status("stopped")
                return None
            except Exception as error:
                with suppress(OSError):  # on a full disk the reason for the failure is what the user must see
                    self._set_status("failed", reason=str(error))
                raise
            finally:
                try:
                    self._trainers.stop()
                finally:
                    self._engines.stop()

    def _start_engines(self) -> MooncakeStore:
        """Start store and servers, and wait for them, or until somebody asks to stop; gives a client of the store."""
        launch, engines = self._launch, self._engines
        self._set_status("starting", waiting="the store and the servers start")
        self._say(f"Starting {launch.deployment.summary}; the logs are in {self._logs}.")
        tokenizer = load_tokenizer(launch.config.target.name, launch.config.target.revision)
        engines.start_master()
        with errors_into(self._logs / "store-client.log"):  # Mooncake's own lines
            store = join_store(launch.config, launch.deployment.endpoints)
        try:
            sweep_run(store, launch.run_dir)
            layer_ids = launch.deployment.servers[0].layer_ids
            engines.start_servers(lambda url: prove_server(url, layer_ids, store, tokenizer))
            engines.wait_ready(lambda: self._stops.count > 0, self._show_waiting)
        except BaseException:
            store.close()
            raise
        return store

    def _train(self, store: MooncakeStore) -> Path | None:
        """Watch ranks and engines to the end, and leave the store empty."""
        self._say(f"Training on {self._launch.deployment.ranks} rank(s).")
        follower = Follower(rank_log(self._logs, 0))
        self._start_ranks(again=self._launch.resume)
        try:
            while not self._ended():
                follower.show()
                self._engines.tick()
                self._heed_signals()
                time.sleep(_TICK_SECONDS)
        except Exception:
            self._let_ranks_save(follower)
            raise
        finally:
            follower.show(rest=True)
            self._clear(store)
        if self._status().get("state") != "finished":
            return None
        return max(self._run.checkpoints.glob("step_*/draft"))

    def _ended(self) -> bool:
        """Whether the ranks are through; those that failed are started again as far as that is allowed.

        Raises:
            PartFailed: it is not.
        """
        if self._trainers.returncode is None:
            return False
        if self._status().get("state") in ("finished", "stopped"):
            return True
        reason, what = self._failure(), self._trainers.what_ended()
        if self._asked > 1 or (self._asked and not reason):  # ended at once, or before they could save anything
            self._set_status("stopped")
            return True
        if self._asked or not self._restarts_left or reason.startswith(UserError.__name__):
            raise PartFailed(f"{what}: {reason}" if reason else f"{what}. {self._trainers.child.last_words()}")
        self._restarts_left -= 1
        self._say(f"{what}; the ranks go on from the last checkpoint ({self._restarts_left} restart(s) left). {reason}")
        self._start_ranks(again=True)
        return False

    def _start_ranks(self, *, again: bool) -> None:
        """Start them; `again` where there may be something to go on from."""
        self._set_status("starting", waiting="the ranks start")
        begun = (self._run.path / "config.yaml").is_file()
        self._trainers.start(self._launch.again if again and begun else self._launch.fresh)

    def _failure(self) -> str:
        """Why the ranks failed, as the first of them to notice told it; empty where none could."""
        status = self._status()
        return status.get("reason", "") if status.get("state") == "failed" else self._run.failure()

    def _heed_signals(self) -> None:
        """The first signal asks the ranks to stop, the second one ends them where they are."""
        if self._stops.count > self._asked:
            self._asked = self._stops.count
            if self._asked == 1:
                self._say("Asked to stop: a checkpoint is saved behind the step that is under way.")
            else:
                self._say("Ended at once, since that was asked for twice: the last checkpoint is kept.")
                self._trainers.stop()
        if self._asked:
            self._trainers.ask_to_stop()

    def _let_ranks_save(self, follower: Follower) -> None:
        """Another part is gone: ranks that still get features may end their step and save."""
        if self._stops.count <= 1:
            wait = _FINISH_SECONDS if self._engines.can_serve else _HOPELESS_SECONDS
            deadline = time.monotonic() + wait
            while self._trainers.returncode is None and self._stops.count <= 1 and time.monotonic() < deadline:
                self._trainers.ask_to_stop()
                follower.show()
                time.sleep(_TICK_SECONDS)
        self._trainers.stop()

    def _clear(self, store: MooncakeStore) -> None:
        """Remove what requests left that were given up, and say what the store holds at the end."""
        deadline = time.monotonic() + _FIND_MASTER_SECONDS
        while True:
            try:
                swept = sweep_run(store, self._run.path)
                # A server that died while it was proved may have left its probe; this store is the run's alone.
                swept += store.sweep(key_prefix("probe"))
                left = store.usage()
                break
            except (UserError, StoreError) as error:
                if self._stops.count > 1 or not self._engines.can_serve or time.monotonic() > deadline:
                    self._say(f"The store cannot be looked at any more: {error}")
                    return
            time.sleep(_TICK_SECONDS)
        self._say(f"The store holds {left.objects} object(s) at the end; {swept} left by this run were removed.")

    def _show_waiting(self, what: str) -> None:
        progress_line(what)
        if time.monotonic() - self._seen_alive > _SIGN_OF_LIFE_SECONDS:
            self._set_status("starting", waiting=what)

    def _set_status(self, state: str, **details: Any) -> None:
        """Write the status while no rank does; how far the run got stays in it."""
        kept = {name: value for name, value in self._status().items() if name in ("step", "max_steps")}
        self._run.set_status(state, **kept, **details)
        self._seen_alive = time.monotonic()

    def _status(self) -> dict[str, Any]:
        try:
            return json.loads((self._run.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # nobody wrote one yet

    def _say(self, text: str) -> None:
        progress_line("")
        with suppress(OSError):  # the terminal is gone: that asks to stop (SIGHUP), and is no failure
            self._tell(text)
        # A full disk ends the run by what it needs to write; its reason must not give way to this line's.
        with suppress(OSError), open(self._logs / "launcher.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
