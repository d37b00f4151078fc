"""The plugin that makes an SGLang server capture features; SGLang finds it by the entry point `sglang.srt.plugins`.

Runs inside the server's own Python environment, whose packages are not ours: torch, mooncake and the standard library
are all it may import. It does nothing unless `CaptureSettings` are in the environment. SGLang only logs a plugin that
fails, so the scheduler's own report, which `capture_proof` checks over HTTP, is what tells an active plugin.

The hooked functions are those of SGLang 0.5.23; `patches/` brings 0.5.14 to the same form.
"""

import importlib.metadata
import multiprocessing
import os
from typing import Any

import torch

from dflash.online.capture_record import MARK
from dflash.online.capture_settings import CaptureSettings
from dflash.online.capture_writer import CaptureWriter
from dflash.online.prompt_capture import PromptCapture
from dflash.online.store import MooncakeStore, StoreSettings

_COMPONENTS = "sglang.srt.managers.scheduler_components"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_IDLE_WAIT = 0.005  # seconds; a request that arrives while only captures are under way waits so long at most

_settings: CaptureSettings | None = None
_capture: PromptCapture | None = None  # of this process, if it is a scheduler
_layer_ids: tuple[int, ...] = ()


def activate() -> None:
    """What SGLang calls in each of its processes, before anything else."""
    global _settings
    _settings = CaptureSettings.from_environment()
    if _settings is None:
        return
    _leave_without_parent()
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, hook, kind in _HOOKS:
        HookRegistry.register(target, hook, HookType(kind))


def _leave_without_parent() -> None:
    """SGLang has a process killed with its parent, but only from just before this on: that may have ended by then."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        raise SystemExit("the process that started this one ended first")


def settings() -> CaptureSettings | None:
    """Those this process was activated with."""
    return _settings


def start(_result: None, scheduler: Any, server_args: Any, *_args, **_kwargs) -> None:
    """After the scheduler was built: join the store. An exception ends the server, as it should."""
    global _capture, _layer_ids
    _layer_ids = tuple(server_args.return_aux_hidden_state_layer_ids or ())
    if not _layer_ids:
        raise RuntimeError("captures need --enable-return-aux-hidden-states and --return-aux-hidden-state-layer-ids")
    if not server_args.disable_radix_cache:
        raise RuntimeError(
            "captures need --disable-radix-cache: tokens found in the cache are not computed, so not captured"
        )
    writer = None
    if _attention_rank(scheduler) == 0:
        store = MooncakeStore.connect(
            StoreSettings(
                _settings.master,
                host=_settings.host,
                segment_bytes=_settings.segment_bytes,
                protocol=_settings.protocol,
                devices=_settings.devices,
            )
        )
        writer = CaptureWriter(store, _layer_ids, _settings.queue_bytes)
    _capture = PromptCapture(writer, store_last_hidden_states=_settings.store_last_hidden_states)


def take_rows(
    original: Any,
    processor: Any,
    *,
    req: Any,
    logits_output: Any,
    hidden_state_offset: int,
    extend_input_len: int,
    store: bool,
    capture_hidden_mode: Any = None,
) -> int:
    """Around the function that would turn a request's rows of one prefill into lists; returns the next one's offset.

    `capture_hidden_mode` says whether the forward kept all rows or only each request's last; 0.5.14 always keeps all.
    """
    wanted = req.return_hidden_states is True or hasattr(req, "dflash_capture")
    if not wanted or not (capture_hidden_mode is None or capture_hidden_mode.is_full()):
        return original(
            processor,
            req=req,
            logits_output=logits_output,
            hidden_state_offset=hidden_state_offset,
            extend_input_len=extend_input_len,
            store=store,
            **({} if capture_hidden_mode is None else {"capture_hidden_mode": capture_hidden_mode}),
        )
    _capture.take(req, logits_output, hidden_state_offset, extend_input_len, complete=store)
    return hidden_state_offset + extend_input_len


def stream_output(original: Any, streamer: Any, reqs: list, return_logprob: bool, skip_req: Any = None) -> None:
    """Around the sending of answers: those of captured prompts wait until their features can be read."""
    ready = [
        req
        for req in reqs
        if req is skip_req
        or not _capture.hold(req, lambda req=req: stream_output(original, streamer, [req], return_logprob))
    ]
    if ready or not reqs:
        original(streamer, ready, return_logprob, skip_req)


def release(*_args, **_kwargs) -> None:
    """Before the scheduler looks for its next batch, which it does all the time."""
    _capture.release()


def sleep(original: Any, *args, **kwargs) -> None:
    """Around the sleep of an idle scheduler, which only requests end: not while outcomes are to come."""
    if _capture is not None and _capture.busy:
        _capture.release(_IDLE_WAIT)
    else:
        original(*args, **kwargs)


def keep_last_hidden_states(result: Any, *_args, **_kwargs) -> None:
    """Before a GPU's results are copied to the host: SGLang leaves these out. Its event covers this copy, too."""
    output = result.logits_output
    states = getattr(output, "last_hidden_states", None)
    if _settings.store_last_hidden_states and states is not None and states.is_cuda:
        host = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
        output.last_hidden_states = host.copy_(states, non_blocking=True)
        states.record_stream(torch.cuda.current_stream(states.device))


def report(result: Any, *_args, **_kwargs) -> Any:
    """After the scheduler described its state: add the proof that it captures."""
    result.internal_state[MARK] = {
        "version": importlib.metadata.version("dflash-workbench"),
        "missing_hooks": missing_hooks(),
        "layer_ids": list(_layer_ids),
        "store": _settings.master,
        "store_last_hidden_states": _settings.store_last_hidden_states,
        **_capture.report(),
    }
    return result


def missing_hooks() -> list[str]:
    """Hooked functions that this SGLang does not have; it only logs them."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [target for target, *_ in _HOOKS if target not in HookRegistry._patched]


def _attention_rank(scheduler: Any) -> int:
    if hasattr(scheduler, "ps"):  # up to 0.5.22
        return scheduler.ps.attn_tp_rank
    from sglang.srt.runtime_context import get_parallel

    return get_parallel().attn_tp_rank


_HOOKS = (
    (f"{_SCHEDULER}.__init__", start, "after"),
    (f"{_SCHEDULER}.get_next_batch_to_run", release, "before"),
    (f"{_SCHEDULER}.get_internal_state", report, "after"),
    (
        f"{_COMPONENTS}.batch_result_processor.SchedulerBatchResultProcessor._append_prefill_hidden_states",
        take_rows,
        "around",
    ),
    (f"{_COMPONENTS}.output_streamer.SchedulerOutputStreamer.stream_output", stream_output, "around"),
    (f"{_COMPONENTS}.idle_sleeper.IdleSleeper.maybe_sleep", sleep, "around"),
    ("sglang.srt.managers.utils.GenerationBatchResult.copy_to_cpu", keep_last_hidden_states, "before"),
)
