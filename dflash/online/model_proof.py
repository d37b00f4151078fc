"""Does a server serve the run's target? Another model of its family reads text alike, captures alike, and would train.

The same model has many names: a hub id here, a folder or a snapshot of the hub's cache on the servers' machine. So what
is refused is what both config.json files show, where both can be read here; names alone raise a doubt, no more.
"""

import re
from collections.abc import Mapping
from typing import Any

from dflash.errors import UserError
from dflash.online.deployment import model_path
from dflash.target_facts import TargetFacts, target_facts

_SIZES = ("depth", "hidden_size", "intermediate_size", "heads", "kv_heads", "vocab_size")


def require_same_model(url: str, info: Mapping[str, Any], name: str, revision: str | None) -> str | None:
    """Compare what server `url` says about itself (`info`) with the target; returns a sentence where that is in doubt.

    Raises:
        UserError: the models have different sizes.
    """
    served, wanted = info.get("model_path"), model_path(name)
    if not served:  # a router, say
        return None
    ours, theirs = _facts(wanted, revision), _facts(served, info.get("revision"))
    for size in _SIZES if ours and theirs else ():
        if getattr(ours, size) != getattr(theirs, size):
            raise UserError(
                f"Server {url} serves {served!r}, whose {size} is {getattr(theirs, size)}, but that of target {name!r} "
                f"is {getattr(ours, size)}: start the server with the target, or name the server's."
            )
    if model_name(served).casefold() != model_name(wanted).casefold():
        return (
            f"Server {url} serves {served!r}, and the target is {name!r}: should these be two models, such as a base "
            "model and its chat model, stop here, since nothing else tells them apart."
        )
    revisions = (info.get("revision"), revision)
    if None not in revisions and len(set(revisions)) == 2:
        return f"Server {url} serves revision {revisions[0]!r} of {served!r}, and the target's is {revisions[1]!r}."
    return None


def model_name(path: str) -> str:
    """The part of a hub id or folder that names the model: not the commit of a snapshot in the hub's cache."""
    parts = [part for part in re.split(r"[/\\]", path) if part] or [path]
    repositories = [part for part in parts if part.startswith("models--")]  # models--ORGANISATION--MODEL
    return repositories[-1].split("--", 2)[-1] if repositories else parts[-1]


def _facts(path: str, revision: str | None) -> TargetFacts | None:
    try:
        return target_facts(path, revision)
    except UserError:
        return None  # a folder of another machine, or one that holds a tokenizer only
