"""Finding a draft: the one shipped for a target, or a folder."""

from pathlib import Path

from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

_ASSETS = Path(__file__).resolve().parent.parent / "assets"

# Drafts that travel with the package, by the name of their target.
SHIPPED_DRAFTS: dict[str, Path] = {EMBEDDED_NAME: _ASSETS / "smollm2-135m-dflash"}


def load_draft(name: str | None, target: TargetModel, *, dtype: str | None = None) -> DFlashDraft:
    """The draft in a folder, or (for None, "" and "default") the one shipped for the target.

    It is loaded in the target's dtype and on its device unless `dtype` says otherwise.

    Raises:
        UserError: there is none, it is damaged, or it was made for another target.
    """
    if name in (None, "", "default"):
        folder = SHIPPED_DRAFTS.get(target.name)
        if folder is None:
            raise UserError(
                f"No draft is shipped for target {target.name!r}: train one with `dflash train` and give its folder."
            )
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"Draft {name!r} is no folder: give a folder with config.json and model.safetensors.")
    dtype = dtype or str(target.dtype).removeprefix("torch.")
    draft = DFlashDraft.from_pretrained(folder, dtype=dtype, device=target.device)
    draft.check_target(target)
    return draft
