"""A store in memory and a capture server that misbehaves as told, for tests of the online source without engines."""

import json
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from dflash.online.capture_record import MARK, CaptureRecord, StoredTensor
from dflash.online.store import Usage
from dflash.online.store_errors import MasterDown, MissingKey, StoreError

LAYER_IDS, WIDTH = (1, 3), 8


def features_of(tokens: list[int]) -> torch.Tensor:
    """[s, WIDTH] bf16 that differ for any two tokens below 256 and any two places."""
    places = torch.arange(len(tokens)) % 7
    return (torch.tensor(tokens)[:, None] + places[:, None] * 1000.0 + torch.arange(WIDTH) / 8).to(torch.bfloat16)


class FakeStore:
    """Keeps tensors by key, as the Mooncake store does; `down` and `losing` inject its faults."""

    def __init__(self) -> None:
        self.objects: dict[str, torch.Tensor] = {}
        self.down = False
        self.losing = 0  # so many of the next objects vanish before they are read
        self.removed: list[str] = []
        self.most = 0  # objects at a time
        self.closed = False
        self._lock = threading.Lock()

    def put(self, key: str, tensor: torch.Tensor) -> None:
        with self._lock:
            assert key not in self.objects
            self.objects[key] = tensor
            self.most = max(self.most, len(self.objects))

    def allocate(self, size: int) -> torch.Tensor:
        return torch.full((size,), 255, dtype=torch.uint8)

    def get(self, into: dict[str, torch.Tensor]) -> None:
        self._require_master()
        with self._lock:
            for key, tensor in into.items():
                if self.losing:
                    self.losing -= 1
                    self.objects.pop(key, None)
                if key not in self.objects:
                    raise MissingKey(f"{key} is gone", [key])
                tensor.copy_(self.objects[key])

    def remove(self, keys: list[str]) -> int:
        self._require_master()
        with self._lock:
            self.removed += keys
            return sum(self.objects.pop(key, None) is not None for key in keys)

    def sweep(self, prefix: str) -> int:
        self._require_master()
        with self._lock:
            found = [key for key in self.objects if key.startswith(prefix)]
            for key in found:
                del self.objects[key]
            return len(found)

    def usage(self) -> Usage:
        self._require_master()
        with self._lock:
            return Usage(sum(tensor.nbytes for tensor in self.objects.values()), 1 << 20, len(self.objects))

    def keys(self) -> list[str]:
        self._require_master()
        with self._lock:
            return list(self.objects)

    def close(self) -> None:
        self.closed = True

    def _require_master(self) -> None:
        if self.down:
            raise MasterDown("the master does not answer")


Behaviour = Callable[[int, dict], str]


class FakeServer:
    """Answers POST /generate as SGLang with our plugin does, unless `behave(number of the request, request)` says else.

    "answer", "die" (with everything in flight), "hang up", "malformed", "no json", "bare" (no record), "error record",
    "short" (a token's row is missing), "busy" (503), "refuse" (400), "not found" (404), "abort" (200 with an abort),
    "lost" (the key leads nowhere), "late" (0.5 s).

    A request that wants no hidden states is answered by `reply`; "cut" then ends the answer at the limit of tokens, and
    "silent" makes it empty. What is not known by then (a record, say) does not matter to it.
    """

    layer_ids = LAYER_IDS

    def __init__(self, store: FakeStore, behave: Behaviour = lambda number, request: "answer", port: int = 0) -> None:
        self.store, self.behave = store, behave
        self.compute: Callable[[list[int]], torch.Tensor] = features_of
        self.reply: Callable[[list[int]], str] = lambda tokens: f"answer {sum(tokens) % 9973}"
        self.encode: Callable[[str], list[int]] = lambda text: list(text.encode())
        self.info: dict = {"model_path": "/models/some-target", "revision": None, "version": "0.5.23"}
        self.requests: list[dict] = []
        self.connections = 0
        self.now = self.most = 0  # requests at a time
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # with keep-alive
            timeout = 20

            def setup(self):
                super().setup()
                with fake._lock:
                    fake.connections += 1
                    fake._open.add(self.connection)

            def finish(self):
                with fake._lock:
                    fake._open.discard(self.connection)
                super().finish()

            def do_GET(self):
                report = {"missing_hooks": [], "layer_ids": list(fake.layer_ids), "store_last_hidden_states": False}
                fake._send(self, 200, {"internal_states": [{MARK: {**report, "store": "m:1"}}], **fake.info})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/tokenize":
                    fake._send(self, 200, {"tokens": [fake.encode(text) for text in body["prompt"]]})
                    return
                with fake._lock:
                    number = len(fake.requests)
                    fake.requests.append(body)
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                try:
                    fake._respond(self, number, body)
                finally:
                    with fake._lock:
                        fake.now -= 1

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # connections that the client or the test cut

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def die(self) -> None:
        """Stop listening and cut every connection, as a killed process does."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._open:
                _reset(connection)

    def _respond(self, handler: BaseHTTPRequestHandler, number: int, request: dict) -> None:
        action = self.behave(number, request)
        if action == "die":
            threading.Thread(target=self.die).start()
            time.sleep(0.3)
            return
        if action == "hang up":
            _reset(handler.connection)
            return
        if action == "late":
            time.sleep(0.5)
        status, answer = self._answer(action, request)
        self._send(handler, status, answer, raw=b"<html>" if action == "no json" else None)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, answer: object, raw: bytes | None = None) -> None:
        payload = json.dumps(answer).encode() if raw is None else raw
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)

    def _answer(self, action: str, request: dict) -> tuple[int, object]:
        if action == "refuse":
            return 400, {"error": {"message": "The input (900 tokens) is longer than the context (512 tokens)."}}
        if action == "not found":
            return 404, {"detail": "Not Found"}
        if action == "busy":
            return 503, {"error": {"message": "no room"}}
        if action == "malformed":
            return 200, ["what?"]
        if action == "bare":
            return 200, {"text": "", "meta_info": {"hidden_states": [[0.1, 0.2]]}}
        if action == "abort":
            reason = {"type": "abort", "status_code": 400, "message": "too long"}
            return 200, {"text": "", "meta_info": {"finish_reason": reason}}
        if not request.get("return_hidden_states"):
            reason = {"type": "length" if action == "cut" else "stop"}
            text = "" if action == "silent" else self.reply(request["input_ids"])
            return 200, {"text": text, "meta_info": {"finish_reason": reason, "completion_tokens": len(text.encode())}}
        if action == "error record":
            record = {"dflash_capture": 1, "error": "StoreFull: no room"}
            return 200, {"text": "", "meta_info": {"hidden_states": [record]}}
        tokens = request["input_ids"]
        features = self.compute(tokens[:-1] if action == "short" else tokens)
        key = f"{request['rid']}/{uuid.uuid4().hex}/features"
        if action != "lost":
            try:
                self.store.put(key, features)
            except StoreError as error:  # of a real store
                record = {"dflash_capture": 1, "error": f"{type(error).__name__}: {error}"}
                return 200, {"text": "", "meta_info": {"hidden_states": [record]}}
        stored = StoredTensor(
            key, tuple(features.shape), str(features.dtype).removeprefix("torch."), features.nbytes
        )
        return 200, {"text": "", "meta_info": {"hidden_states": [CaptureRecord(self.layer_ids, stored).to_json()]}}


def _reset(connection: socket.socket) -> None:
    """Close so that the other side gets a reset, not a regular end."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        pass  # it was closed already
