"""The models of one workbench process: loaded when first asked for, then kept."""

import json
import threading
from pathlib import Path
from typing import Any

from dflash.cli.options import pick_device
from dflash.decoding.engine import Engine
from dflash.decoding.transformers_engine import load_assistant
from dflash.evaluation.machine import describe_machine
from dflash.model.draft_folder import SHIPPED_DRAFTS
from dflash.model.loading import load_draft
from dflash.target import TargetModel

SHIPPED = "shipped"
_MOST_DRAFTS = 12  # in memory at once: as many as one comparison may hold


class Bench:
    """One target and the drafts opened beside it. Loading happens once, whichever thread asks first."""

    def __init__(
        self,
        target_name: str,
        draft_name: str = "",
        runs: Path = Path("runs"),
        *,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        """`device` "auto" is CUDA if there is one, else the CPU.

        Raises:
            UserError: no such device here.
        """
        self.device = pick_device(device)
        self.target_name = target_name
        self.draft_name = draft_name or SHIPPED
        self.runs = runs
        self.dtype = dtype
        self._target: TargetModel | None = None
        self._engines: dict[str, Engine] = {}
        self._assistant: tuple[str, TargetModel] | None = None  # the one that was asked for last
        self._lock = threading.RLock()

    @property
    def target(self) -> TargetModel:
        """The target, loaded at the first call.

        Raises:
            UserError: it cannot be loaded; the next call tries again.
        """
        with self._lock:
            if self._target is None:
                self._target = TargetModel.load(self.target_name, dtype=self.dtype, device=self.device)
            return self._target

    def engine(self, draft_name: str) -> Engine:
        """A warmed-up engine for this draft ("shipped" or a folder).

        Raises:
            UserError: target or draft cannot be loaded, or do not fit one another.
        """
        name = (draft_name or self.draft_name).strip()
        with self._lock:
            key = self._key(name)
            if key not in self._engines:
                draft = load_draft(None if name == SHIPPED else name, self.target)
                engine = Engine(self.target, draft)
                engine.warm_up()
                older = f"{name}@"
                self._engines = {known: kept for known, kept in self._engines.items() if not known.startswith(older)}
                while len(self._engines) >= _MOST_DRAFTS:
                    self._engines.pop(next(iter(self._engines)))
                self._engines[key] = engine
            return self._engines[key]

    def assistant(self, name: str) -> TargetModel:
        """The small autoregressive model of a folder or Hugging Face id, for assisted generation.

        Raises:
            UserError: it cannot be loaded, or its tokens are not the target's.
        """
        name = name.strip()
        with self._lock:
            if self._assistant is None or self._assistant[0] != name:
                self._assistant = None  # two of them need not be in memory at once
                self._assistant = name, load_assistant(name, self.target)
            return self._assistant[1]

    def is_ready(self, draft_name: str) -> bool:
        """Whether `engine` would answer at once."""
        return self._key((draft_name or self.draft_name).strip()) in self._engines

    def machine(self) -> dict[str, Any]:
        """What decodes here, in words that a result can keep; loads the target."""
        return describe_machine(Engine(self.target))

    def block_size(self, draft_name: str = "") -> int:
        """The draft's block size from its config.json alone; 16 where it cannot be read (decoding then says why)."""
        folder = self._folder((draft_name or self.draft_name).strip())
        try:
            return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["block_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return 16

    def drafts(self) -> list[str]:
        """Drafts to choose from: the shipped one, the one given at start, and folders under the runs folder."""
        found = [self.draft_name]
        if self.target_name in SHIPPED_DRAFTS:
            found.append(SHIPPED)
        kept = self.runs.glob("*/checkpoints/step_*/draft/model.safetensors")  # and not those that are being written
        found += sorted(str(weights.parent) for weights in kept)
        return list(dict.fromkeys(found))

    def _folder(self, name: str) -> Path:
        return SHIPPED_DRAFTS.get(self.target_name, Path()) if name == SHIPPED else Path(name).expanduser()

    def _key(self, name: str) -> str:
        """Name and age of the weights: a draft saved again under the same name is loaded again."""
        try:
            return f"{name}@{(self._folder(name) / 'model.safetensors').stat().st_mtime_ns}"
        except OSError:
            return f"{name}@missing"
