"""Requests to SGLang servers over HTTP: have a document's features captured, or a prompt answered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from dflash.errors import UserError
from dflash.online.capture_record import CaptureFailed, CaptureRecord

T = TypeVar("T")

_CONNECT_SECONDS = 5.0
# Shorter than uvicorn's 5 s, so that no request is sent on a connection which the server is about to close.
_KEEP_ALIVE_SECONDS = 4.0
_REFUSALS = frozenset((400, 413, 422))
_PASSING = frozenset((408, 425, 429))  # "not now"


class Refused(Exception):
    """The server will never take this request, and no other will: too long, say."""


class ServerFault(Exception):
    """The server did not answer, or not as it should."""


@dataclass(frozen=True)
class Answer:
    """What a server generated for a prompt. `text` is without the token that ended it."""

    text: str
    tokens: int
    finished: bool  # the target ended it, not the limit of tokens


class EngineClient:
    """Keeps connections to all servers open. Lives and is used in one event loop."""

    def __init__(self, connections: int, answer_seconds: float) -> None:
        """`answer_seconds` is how long a server may take for one answer, its own queue included."""
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(30.0, connect=_CONNECT_SECONDS, read=answer_seconds, pool=None),
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEP_ALIVE_SECONDS
            ),
            trust_env=False,  # a proxy for the outside world is not the way to the servers
        )

    async def capture(self, address: str, tokens: Sequence[int], request_id: str) -> CaptureRecord:
        """Have a document captured; its objects' keys begin with "REQUEST_ID/".

        Raises:
            Refused, ServerFault, CaptureFailed
            UserError: what answers there is no capture server.
        """
        request = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "rid": request_id,
            "return_hidden_states": True,
        }
        return await self._generate(address, request, lambda body: CaptureRecord.from_meta_info(body["meta_info"]))

    async def answer(self, address: str, tokens: Sequence[int], sampling: Mapping[str, Any]) -> Answer:
        """Have a prompt answered; `sampling` are SGLang's `sampling_params`.

        Raises:
            Refused, ServerFault
            UserError: what answers there is no SGLang server.
        """
        return await self._generate(address, {"input_ids": list(tokens), "sampling_params": dict(sampling)}, _answer)

    async def _generate(self, address: str, request: Mapping[str, Any], parse: Callable[[Any], T]) -> T:
        try:
            response = await self._http.post(f"{address}/generate", json=request)
        except httpx.TimeoutException as error:
            raise ServerFault(f"{address} did not answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise ServerFault(f"{address} cannot be reached: {error or type(error).__name__}") from error
        outcome = "" if response.is_success else f"{address} answered HTTP {response.status_code}: {_message(response)}"
        if response.status_code in _REFUSALS:
            raise Refused(outcome)
        if response.is_client_error and response.status_code not in _PASSING:
            raise UserError(f"Server {outcome}: give the address of an SGLang server that lets this run in.")
        if not response.is_success:
            raise ServerFault(outcome)
        try:
            body = response.json()
            _require_taken(body["meta_info"])
            return parse(body)
        except (CaptureFailed, Refused, ServerFault) as error:
            raise type(error)(f"{address}: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerFault(f"{address} returned a malformed answer: {response.text[:200]!r}") from error

    async def close(self) -> None:
        """Close all connections; servers abort what they were still working on."""
        await self._http.aclose()


def _require_taken(meta_info: Mapping[str, Any]) -> None:
    """Some refusals come as answers that were given up."""
    finish = meta_info.get("finish_reason") or {}
    if finish.get("type") == "abort" and finish.get("status_code") == 400:
        raise Refused(finish.get("message") or "the request was aborted")


def _answer(body: Mapping[str, Any]) -> Answer:
    meta_info, text = body["meta_info"], body["text"]
    finish = meta_info["finish_reason"]
    if finish["type"] not in ("stop", "length"):
        raise ServerFault(finish.get("message") or f"the answer ended by {finish['type']!r}")
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}")
    return Answer(text, int(meta_info["completion_tokens"]), finish["type"] == "stop")


def _message(response: httpx.Response) -> str:
    """What the body says, in SGLang's form, FastAPI's or any other."""
    try:
        body = response.json()
        message = body["error"]["message"] if "error" in body else body["detail"]
    except (ValueError, TypeError, KeyError):
        message = response.text
    return str(message)[:500].rstrip(". ") or "no reason given"
