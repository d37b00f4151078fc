"""Proof, from a running server, that it captures what the trainer expects: SGLang serves on when a plugin fails.

`require_proof` asks the server what it does; `require_capture` has it done once.
"""

import http.client
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any

from dflash.errors import UserError
from dflash.online.capture_record import MARK, CaptureFailed, CaptureRecord
from dflash.online.store import MooncakeStore, key_prefix

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


def require_capture(url: str, store: MooncakeStore, timeout: float = 60.0) -> None:
    """Have a prompt of three tokens captured, find its objects in the store and remove them.

    Raises:
        UserError: the server captures nothing, or puts it into another store than this one.
    """
    request = {
        "input_ids": [1, 2, 3],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_hidden_states": True,
        "rid": f"{key_prefix('probe')}{uuid.uuid4().hex}",
    }
    answer = _read(
        urllib.request.Request(f"{url}/generate", json.dumps(request).encode(), {"Content-Type": "application/json"}),
        timeout,
    )
    try:
        record = CaptureRecord.from_meta_info(answer["meta_info"])
    except CaptureFailed as error:
        raise UserError(f"Server {url} does not capture ({error}): {_FIX}.") from error
    removed = store.remove([tensor.key for tensor in record.tensors])
    if removed != len(record.tensors) or any(tensor.shape[0] != 3 for tensor in record.tensors):
        raise UserError(
            f"Server {url} did not put a prompt's features into the store at {store.settings.master}: give server and "
            "trainer the same Mooncake master."
        )


def server_info(url: str, timeout: float = 10.0) -> dict[str, Any]:
    """What an SGLang server says about itself, its settings and its load included.

    Raises:
        UserError: nothing answers there, or something that is no SGLang server.
    """
    return _read(urllib.request.Request(f"{url}/server_info"), timeout)


def _read(request: urllib.request.Request, timeout: float) -> dict[str, Any]:
    where = f"Server {request.type}://{request.host}"
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{where} answers HTTP status {error.code} to {request.selector}: is it an SGLang server?"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{where} cannot be reached ({error}): start it, or correct the address.") from error
