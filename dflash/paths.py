"""Where the package keeps files outside the user's own folders."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Folder for converted targets and other things that can be rebuilt.

    `DFLASH_CACHE` if set, else `$XDG_CACHE_HOME/dflash`, else `~/.cache/dflash`.
    """
    if explicit := os.environ.get("DFLASH_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dflash"
