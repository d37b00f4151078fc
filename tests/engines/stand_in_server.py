"""Stands in for `sglang.launch_server`: quick to start, with the real target's numbers and a real store.

Takes the arguments that `ServerSettings` makes and the plugin's own settings from the environment. A file
"never-healthy" in the folder $STAND_IN makes it misbehave as it says.
"""

import argparse
import json
import os
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from dflash.features.in_process import InProcessFeatures
from dflash.online.capture_record import CaptureRecord, StoredTensor, failure
from dflash.online.capture_settings import CaptureSettings
from dflash.online.store import MooncakeStore, StoreSettings
from dflash.online.store_errors import StoreError
from dflash.target import TargetModel

FOLDER = Path(os.environ["STAND_IN"])


class StandIn:
    """One target, one store client, one request at a time."""

    def __init__(self, model: str, layer_ids: list[int], dtype: str, context: int) -> None:
        settings = CaptureSettings.from_environment()
        self.target, self.layer_ids, self.context = TargetModel.load(model, dtype=dtype), layer_ids, context
        self.model = model
        self.features = InProcessFeatures(self.target, layer_ids)
        self.master = settings.master
        self.store = MooncakeStore.connect(StoreSettings(settings.master, segment_bytes=settings.segment_bytes))
        self.staging, self.lock = self.store.allocate(1 << 20), threading.Lock()

    @torch.no_grad()
    def generate(self, request: dict) -> tuple[int, dict]:
        tokens = request["input_ids"]
        if len(tokens) >= self.context - 6:
            return 400, {"error": {"message": f"The input ({len(tokens)} tokens) is longer than the context."}}
        with self.lock:
            features = self.features.of_documents([tokens], len(tokens))[0]
            key = f"{request['rid']}/{uuid.uuid4().hex}/features"
            staged = self.staging[: features.nbytes].view(features.dtype).view(features.shape)
            try:
                self.store.put({key: staged.copy_(features)})
            except StoreError as error:
                return 200, _answer(failure(f"{type(error).__name__}: {error}"))
        name = str(features.dtype).removeprefix("torch.")
        stored = StoredTensor(key, tuple(features.shape), name, features.nbytes)
        return 200, _answer(CaptureRecord(tuple(self.layer_ids), stored).to_json())

    def info(self) -> dict:
        report = {
            "missing_hooks": [],
            "layer_ids": self.layer_ids,
            "store": self.master,
            "store_last_hidden_states": False,
        }
        return {
            "version": "stand-in",
            "device": "cpu",
            "model_path": self.model,
            "max_req_input_len": self.context - 6,
            "internal_states": [{"dflash_capture": report}],
        }

    def tokenize(self, request: dict) -> dict:
        encode = self.target.tokenizer.encode
        return {"tokens": [encode(text, add_special_tokens=False) for text in request["prompt"]]}


def _answer(record: dict) -> dict:
    return {"text": "", "meta_info": {"hidden_states": [record]}}


def handler_of(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(503 if (FOLDER / "never-healthy").exists() else 200, {})
            else:
                self._send(200, stand_in.info())

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                self._send(200, stand_in.tokenize(request))
            else:
                self._send(*stand_in.generate(request))

        def _send(self, status: int, answer: dict) -> None:
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_arguments) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--return-aux-hidden-state-layer-ids", type=int, nargs="+", dest="layer_ids")
    args, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    stand_in = StandIn(args.model_path, args.layer_ids, args.dtype, args.context_length)
    print(f"serving on {args.port}", flush=True)
    ThreadingHTTPServer(("127.0.0.1", args.port), handler_of(stand_in)).serve_forever()


if __name__ == "__main__":
    main()
