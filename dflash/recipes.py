"""Finding the recipes of `configs/`: in the source tree, or where a normal install put them."""

import importlib.metadata
from pathlib import Path

from dflash.data.kinds import refuse_data_as_config
from dflash.errors import UserError

_SOURCE_FOLDER = Path(__file__).resolve().parent.parent / "configs"
_DISTRIBUTION = "dflash-workbench"


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe by its name (the file's name without `.yaml`), sorted."""
    if _SOURCE_FOLDER.is_dir():
        files = list(_SOURCE_FOLDER.glob("*.yaml"))
    else:
        try:
            listed = importlib.metadata.files(_DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            listed = []
        files = [Path(f.locate()).resolve() for f in listed if f.parent.name == "configs" and f.suffix == ".yaml"]
    return {path.stem: path for path in sorted(files)}


def resolve_recipe(name: str) -> Path:
    """A config file by its path, or a shipped recipe by its name.

    Raises:
        UserError: there is neither, and the sentence lists the recipes; or the file is data.
    """
    path = Path(name).expanduser()
    if path.exists():
        refuse_data_as_config(path)
        return path
    recipes = shipped_recipes()
    found = recipes.get(name.removeprefix("configs/").removesuffix(".yaml"))
    if found is None:
        known = ", ".join(recipes) or "none are installed"
        raise UserError(f"Config {name!r} is neither a file nor a shipped recipe: give a YAML file or one of {known}.")
    return found
