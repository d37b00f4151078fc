"""Finding a draft: the one shipped for a target, or a folder."""

from dflash.model.draft import DFlashDraft
from dflash.model.draft_folder import find_draft
from dflash.target import TargetModel


def load_draft(name: str | None, target: TargetModel, *, dtype: str | None = None) -> DFlashDraft:
    """The draft in a folder, or (for None, "" and "default") the one shipped for the target.

    It is loaded in the target's dtype and on its device unless `dtype` says otherwise.

    Raises:
        UserError: there is none, it is damaged, or it was made for another target.
    """
    folder = find_draft(name, target.name)
    dtype = dtype or str(target.dtype).removeprefix("torch.")
    draft = DFlashDraft.from_pretrained(folder, dtype=dtype, device=target.device)
    draft.check_target(target)
    return draft
