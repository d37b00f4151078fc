"""A draft's folder, looked at without torch: where it is, what its config says, whether its files are whole.

    config.json  model.safetensors      the public form, which other tools load
    draft_vocabulary.json               where the draft proposes from some of the tokens only
    checksums.json                      size and CRC-32 of the files above; other tools pass it over

A folder without checksums was written by another tool and is taken as it is.
"""

import json
from pathlib import Path

from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from dflash.manifest import describe, find_damage, read_manifest, write_manifest
from dflash.model.config import DFlashConfig
from dflash.target_facts import target_facts

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKSUMS_FILE = "checksums.json"

_ASSETS = Path(__file__).resolve().parent.parent / "assets"

# Drafts that travel with the package, by the name of their target.
SHIPPED_DRAFTS: dict[str, Path] = {EMBEDDED_NAME: _ASSETS / "smollm2-135m-dflash"}
# The recipes of `configs/` that hold the settings of their training.
SHIPPED_DRAFT_RECIPES: dict[str, str] = {EMBEDDED_NAME: "smollm2-135m-cpu"}


def find_draft(name: str | None, target_name: str) -> Path:
    """The folder that `name` names, or (for None, "" and "default") that of the draft shipped for the target.

    A checkpoint of a run stands for the draft in it.

    Raises:
        UserError: there is none.
    """
    if name in (None, "", "default"):
        if target_name not in SHIPPED_DRAFTS:
            raise UserError(
                f"No draft is shipped for target {target_name!r}: train one with `dflash train` and give its folder."
            )
        return SHIPPED_DRAFTS[target_name]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"Draft {name!r} is no folder: give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.")
    return folder / "draft" if (folder / "draft" / CONFIG_FILE).is_file() else folder


def read_draft_config(folder: Path) -> DFlashConfig:
    """The config of a folder that holds the files of a draft.

    Raises:
        UserError: a file is missing, or the config cannot be read or is not that of a draft.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            drafts = sorted(folder.glob("checkpoints/step_*/draft"))
            remedy = f"{drafts[-1]}, a draft of this run" if drafts else f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise UserError(f"Draft folder {str(folder)!r} holds no {name}: give {remedy}.")
    try:
        return DFlashConfig.from_public(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"Draft {str(folder)!r}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"Draft {str(folder)!r}: {CONFIG_FILE} could not be read ({error}).") from error


def check_draft(name: str | None, target_name: str, block_size: int | None = None) -> None:
    """Refuse from its small files alone what could not be decoded with, before anything is loaded.

    Args:
        name: as for `find_draft`.
        target_name: the target to decode with; one that is not here is not compared.
        block_size: slots asked for; None: the draft's own.

    Raises:
        UserError: there is no such draft, it was made for another target, or its blocks are smaller.
    """
    config = read_draft_config(find_draft(name, target_name))
    if facts := target_facts(target_name):
        sizes = {"hidden_size": facts.hidden_size, "vocab_size": facts.vocab_size, "depth": facts.depth}
        config.check_target(target_name, **sizes)
    if block_size is not None and not 2 <= block_size <= config.block_size:
        raise UserError(
            f"--block-size {block_size} is out of range: choose from 2 to {config.block_size}, the draft's own blocks."
        )


def check_whole(folder: Path) -> None:
    """Compare every file with its checksum, in about a second per GB.

    Raises:
        UserError: one of them is not as it was written.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return
    try:
        damage = find_damage(folder, read_manifest(path))
    except (OSError, ValueError) as error:
        damage = f"{CHECKSUMS_FILE} could not be read: {error}"
    if damage:
        raise UserError(
            f"Draft {str(folder)!r} is damaged ({damage}): copy or download it again, or remove {CHECKSUMS_FILE} if "
            "its files were changed on purpose."
        )


def unseal(folder: Path) -> None:
    """Before files are replaced: whatever interrupts that, no checksums of older ones stay behind."""
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)


def seal(folder: Path, names: list[str]) -> None:
    """Write the checksums of a draft's files, which are made durable on the way."""
    write_manifest(folder / CHECKSUMS_FILE, describe(folder, [folder / name for name in names]))
