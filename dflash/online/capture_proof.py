"""Proof, from a running server, that it captures what the trainer expects: SGLang serves on when a plugin fails."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from dflash.errors import UserError
from dflash.online.capture_record import MARK

_FIX = "start it with 'dflash serve-target', from the environment that 'dflash engines install' makes"


def require_proof(
    url: str, *, layer_ids: Sequence[int], store: str | None = None, store_last_hidden_states: bool = False
) -> dict[str, Any]:
    """The server's own description ("server_info"), after checking that every scheduler in it captures as wanted.

    `store` is the Mooncake master's address, None where it may be written in another way than here.

    Raises:
        UserError: it cannot be reached, the plugin is not active in it, or it captures something else.
    """
    info = server_info(url)
    reports = [state.get(MARK) for state in info.get("internal_states") or [{}]]
    for report in reports:
        if report is None:
            raise UserError(f"Server {url} runs without the capture plugin: {_FIX}.")
        if report["missing_hooks"]:
            raise UserError(
                f"Server {url} runs SGLang {info.get('version')}, in which the capture plugin finds no "
                f"{', '.join(report['missing_hooks'])}: {_FIX}, or apply the patch for that version."
            )
        wanted = {
            "layer_ids": list(layer_ids),
            "store_last_hidden_states": store_last_hidden_states,
            "store": report["store"] if store is None else store,
        }
        for name, value in wanted.items():
            if report[name] != value:
                raise UserError(
                    f"Server {url} captures with {name} = {report[name]!r}, but the run needs {value!r}: restart it."
                )
    return info


def server_info(url: str, timeout: float = 10.0) -> dict[str, Any]:
    """What an SGLang server says about itself, its settings and its load included.

    Raises:
        UserError: nothing answers there, or something that is no SGLang server.
    """
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=timeout) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise UserError(f"Server {url} is no SGLang server (HTTP status {error.code}): correct the address.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"Server {url} cannot be reached ({error}): start it, or correct the address.") from error
