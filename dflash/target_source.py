"""The folder or hub id behind a target's name, without torch: a name that cannot be right is refused at once."""

from pathlib import Path

from dflash.embedded import EMBEDDED_NAME, ensure_embedded_target
from dflash.errors import UserError
from dflash.hub import hub_is_reachable
from dflash.target_facts import target_is_here


def resolve_target(name: str, revision: str | None = None) -> str:
    """The folder or hub id behind a target's name; the embedded target is converted first where it was not yet.

    Raises:
        UserError: there can be no such target, or it is none of those that have revisions.
    """
    check_target_name(name, revision)
    if name == EMBEDDED_NAME:
        return str(ensure_embedded_target())
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def check_target_name(name: str, revision: str | None = None) -> None:
    """Look at the name and at what is there, without opening anything.

    Raises:
        UserError: there can be no such target, or it is none of those that have revisions.
    """
    if not name.strip():
        raise UserError(f"The target's name is empty: give {EMBEDDED_NAME!r}, a Hugging Face id or a folder.")
    if name == EMBEDDED_NAME:
        if revision is not None:
            raise UserError(f"Target {name!r} has one revision only, not {revision!r}: drop target.revision.")
        return
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"Target folder {name!r} holds no config.json: give the folder that holds the model's files."
            )
        if revision is not None:
            raise UserError(f"Target {name!r} is a folder, which has no revision {revision!r}: drop target.revision.")
    elif name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise UserError(f"Target folder {name!r} does not exist: give {EMBEDDED_NAME!r}, a hub id or a folder.")


def check_target_reachable(name: str, revision: str | None = None) -> None:
    """Refuse a hub target that would have to be downloaded while the hub cannot be reached.

    Raises:
        UserError: as above, or there can be no such target.
    """
    check_target_name(name, revision)
    if not target_is_here(name, revision) and not hub_is_reachable():
        raise UserError(
            f"Target {name!r} is neither a folder here nor in the local cache, and the Hugging Face hub cannot be "
            f"reached: give {EMBEDDED_NAME!r}, a folder, or a Hugging Face id while it can."
        )


def is_local(source: str) -> bool:
    """True for a folder, and for a hub id when only its cached copy can be had."""
    return Path(source).is_dir() or not hub_is_reachable()
