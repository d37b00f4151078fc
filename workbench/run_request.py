"""What a visitor asks for on the Train page, and the plan it amounts to: preview, Start and Queue use these objects."""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dflash.config import dump_config, read_tree
from dflash.errors import UserError
from dflash.online.deployment import is_started_here
from dflash.recipes import resolve_recipe, shipped_recipes
from dflash.training.plan import RunPlan, plan_run
from workbench.capacity import gpu_count
from workbench.form_fields import field_of
from workbench.job import read_json
from workbench.run_reader import NAME, RunsRoot

RUN_PREFIX = "run:"  # before the name of an earlier run, to tell it from a recipe
_SETTING = re.compile(r"\w+\.\w+")
_LARGEST_WORLD = 1024


@dataclass(frozen=True)
class RunRequest:
    """Where a config comes from and what is changed in it.

    `origin` is the name of a shipped recipe, or "run:NAME" for an earlier run. `settings` holds the text typed for each
    `section.key`; empty text asks for the default. `ranks` is the number of processes that train; None: as
    many as suit the origin, see `usual_ranks`.
    """

    origin: str
    settings: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    ranks: int | None = None

    @classmethod
    def from_json(cls, value: Any) -> "RunRequest":
        """What the page sends.

        Raises:
            UserError: it is no request, which a page of another version of the workbench may send.
        """
        try:
            settings = {str(key): str(text) for key, text in value.get("settings", {}).items()}
            ranks = int(str(value["ranks"])) if value.get("ranks") else None
            request = cls(str(value["origin"]), settings, str(value.get("name") or "").strip(), ranks)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError("The page sent something that is no run: reload it.") from error
        request.check()
        return request

    @classmethod
    def from_query(cls, query: Mapping[str, str], default: "RunRequest") -> "RunRequest":
        """What a link says: `?from=RECIPE` or `?run=NAME`, with `name`, `ranks` and `section.key` beside it.

        Raises:
            UserError: a part of the link is not usable.
        """
        if not ({"from", "run"} & query.keys() or any(_SETTING.fullmatch(key) for key in query)):
            return default
        origin = RUN_PREFIX + query["run"] if query.get("run") else query.get("from") or default.origin
        settings = {key: text for key, text in query.items() if _SETTING.fullmatch(key)}
        value = {"origin": origin, "settings": settings, "name": query.get("name"), "ranks": query.get("ranks")}
        return cls.from_json(value)

    @classmethod
    def from_overrides(cls, origin: str, overrides: list[str], name: str, ranks: int) -> "RunRequest":
        """What the API is given: `section.key=value` as on the command line.

        Raises:
            UserError: an override is of another form, or the request is not possible.
        """
        settings = {}
        for override in overrides:
            setting, equals, text = override.partition("=")
            if not (equals and text.strip() and _SETTING.fullmatch(setting)):
                raise UserError(
                    f"Override {override!r} is not of the form section.key=value: write it like run.seed=1."
                )
            settings[setting] = "" if text.strip() == "null" else text.strip()
        request = cls(origin, settings, name, ranks)
        request.check()
        return request

    def check(self) -> None:
        """
        Raises:
            UserError: the name is no plain name, or the number of ranks is none.
        """
        if self.name and not NAME.fullmatch(self.name):
            raise UserError(
                f"Run name {self.name[:120]!r} is no plain name: use letters, digits, '-', '_' and '.', up to 100."
            )
        if self.ranks is not None and not 1 <= self.ranks <= _LARGEST_WORLD:
            raise UserError(f"{self.ranks} training processes are not possible: give 1 to {_LARGEST_WORLD}.")

    def to_json(self) -> dict[str, Any]:
        return {"origin": self.origin, "settings": dict(self.settings), "name": self.name, "ranks": self.ranks}


@dataclass(frozen=True)
class Prepared:
    """A request with its plan. What it shows is what it starts: `frozen` is the very text that the run reads."""

    request: RunRequest
    source: Path  # the YAML file it began with
    shown_source: str  # as the command line names it
    given: dict[str, Any]  # settings of that file
    plan: RunPlan
    runs: Path

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.plan.run_dir.name

    @cached_property
    def frozen(self) -> str:
        """The resolved config as YAML."""
        return dump_config(self.plan.config)

    @property
    def launches_itself(self) -> bool:
        """Whether `dflash train` starts the ranks, with servers and store beside them."""
        return is_started_here(self.plan.config)

    @property
    def shown_command(self) -> str:
        """For a terminal in this folder: the same run, from the recipe and what was changed."""
        words = ["dflash"] if self._ranks == 1 else ["torchrun", *_launcher(self._ranks), "-m", "dflash"]
        changed = overrides(self.request.settings)
        return shlex.join([*words, "train", self.shown_source, *changed, *self._shown_place])

    @property
    def command(self) -> list[str]:
        """As a job runs it; `{config}` stands for the file into which `frozen` is written."""
        return [*program(self._ranks), "train", "{config}", "--runs", str(self.runs), "--name", self.name]

    @property
    def resume_command(self) -> list[str]:
        """Goes on from the newest checkpoint, on as many ranks."""
        return [*program(self._ranks), "train", "--resume", str(self.plan.run_dir)]

    @property
    def _ranks(self) -> int:
        """Processes that torchrun starts here; `dflash train` starts those of an online run itself."""
        return 1 if self.launches_itself else self.request.ranks

    @property
    def _shown_place(self) -> list[str]:
        return ["--runs", _short(self.runs), "--name", self.name]


def program(ranks: int) -> list[str]:
    """`dflash` as so many processes, under the Python that runs this one."""
    one = ["-m", "dflash"]
    return [sys.executable, *(one if ranks == 1 else ["-m", "torch.distributed.run", *_launcher(ranks), *one])]


def _launcher(ranks: int) -> list[str]:
    return ["--standalone", "--nproc-per-node", str(ranks)]


def prepare(request: RunRequest, root: RunsRoot) -> Prepared:
    """Plan a request; what is wrong with its settings is in the plan.

    Raises:
        UserError: there is no such recipe or run, or its file is damaged.
    """
    request.check()
    if request.origin.startswith(RUN_PREFIX):
        source = root.path(request.origin.removeprefix(RUN_PREFIX)) / "config.yaml"
        shown, stem = _short(source), source.parent.name
    else:
        if request.origin not in shipped_recipes():
            raise UserError(f"There is no recipe {request.origin!r}: choose one of {', '.join(shipped_recipes())}.")
        source = resolve_recipe(request.origin)
        shown = stem = request.origin
    changed = overrides(request.settings)
    tree = read_tree(source, changed)
    name = request.name or f"{stem[:80]}-{datetime.now():%Y%m%d-%H%M%S}"
    if request.ranks is None:
        request = replace(request, ranks=usual_ranks(request.origin, tree, root))
    ranks = None if is_online(tree) else request.ranks  # of online runs the config says how many
    plan = plan_run(tree, repr(shown), root.root / name, ranks)
    return Prepared(request, source, shown, read_tree(source), plan, root.root)


def usual_ranks(origin: str, tree: Mapping[str, Any], root: RunsRoot) -> int:
    """Processes to begin with: a run's own number, every GPU here where a recipe asks for CUDA, otherwise one."""
    if origin.startswith(RUN_PREFIX):
        return ranks_of_run(origin.removeprefix(RUN_PREFIX), root)
    run = tree.get("run")
    device = run.get("device") if isinstance(run, Mapping) else None
    return (gpu_count() or 1) if str(device).startswith("cuda") and not is_online(tree) else 1


def ranks_of_run(name: str, root: RunsRoot) -> int:
    """Processes that torchrun started for a run, as its newest checkpoint tells: as many go on exactly."""
    if is_online(root.settings(name)):
        return 1  # `dflash train` starts them itself
    states = sorted(root.path(name).glob("checkpoints/step_*/trainer.json"))
    return int(read_json(states[-1]).get("world_size", 1)) if states else 1


def _short(path: Path) -> str:
    """Relative where it lies below the folder that the workbench runs in."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def is_online(tree: Mapping[str, Any]) -> bool:
    """Whether `dflash train` starts the ranks of these settings, with servers beside them; judged before validation."""
    features, online = tree.get("features"), tree.get("online")
    if not isinstance(features, Mapping) or features.get("source") != "online":
        return False
    return not (isinstance(online, Mapping) and online.get("servers"))


def overrides(settings: Mapping[str, str]) -> list[str]:
    """The settings as `section.key=value`, as the command line takes them.

    Raises:
        UserError: a key is not of the form section.key.
    """
    found = []
    for setting, text in settings.items():
        if not _SETTING.fullmatch(setting):
            raise UserError(f"Setting {setting[:120]!r} is not of the form section.key: write it like run.seed.")
        found.append(f"{setting}={_yaml(setting, text)}")
    return found


def _yaml(setting: str, text: str) -> str:
    """What was typed, as YAML that means it: text stays text even where it looks like a number."""
    text = text.strip()
    if not text:
        return "null"
    known = field_of(setting)
    kind = known.kind if known else "number"
    if kind in ("texts", "numbers"):
        parts = text.strip("[]").split("\n" if "\n" in text else ",")
        entry = _text if kind == "texts" else _scalar
        return "[" + ", ".join(entry(part.strip()) for part in parts if part.strip()) + "]"
    return _text(text) if kind == "text" else _scalar(text)


def _text(text: str) -> str:
    """As it is where YAML reads exactly this text, also within a list; quoted otherwise."""
    return text if _read(text) == text and _read(f"[{text}]") == [text] else json.dumps(text, ensure_ascii=False)


def _scalar(text: str) -> str:
    """A number or a truth; anything else stays text, for the config to say what it wants."""
    value = _read(text)
    plain = isinstance(value, (str, int, float, bool)) and not set(text) & set(",[]{}")
    return text if plain and text == text.strip("'\"") else json.dumps(text, ensure_ascii=False)


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
