"""The target: any decoder-only Hugging Face model, its parts, and feature capture by hooks.

Shapes: B batch, S tokens, H hidden size of the target, n captured layers, V vocabulary.
"""

import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import logging

from dflash.cache import growing_cache
from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from dflash.target_source import is_local, resolve_target

_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


class _CaptureComplete(Exception):
    """Raised by the last hook to leave the forward when nothing above the last captured layer is needed."""


@dataclass
class TargetOutput:
    """What one target forward gave: `logits` [B, kept, V] and `features` [B, S, n*H] (either may be None)."""

    logits: torch.Tensor | None
    features: torch.Tensor | None


class TargetModel:
    """A frozen target with one interface for every decoder-only family; all numbers are read from the model."""

    def __init__(self, model: nn.Module, tokenizer, name: str, config=None) -> None:
        """`config` describes the whole target where `model` is only a part of it."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.config = config or model.config.get_text_config()
        self.decoder = model.get_decoder()
        self._layers = _decoder_layers(self.decoder, model.config.get_text_config().num_hidden_layers)
        self.embedding: nn.Module = model.get_input_embeddings()
        self.lm_head: nn.Module = model.get_output_embeddings()
        if self.lm_head is None:
            raise UserError(f"Target {name!r} has no LM head: load a causal language model.")
        # Hooks belong to the modules: a forward of another thread (prefetching, say) would run into those of this one.
        self._one_at_a_time = threading.Lock()
        self.lm_head.register_forward_pre_hook(lambda _, args: (packed(args[0]), *args[1:]))

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "bfloat16",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        layers: bool = True,
    ) -> "TargetModel":
        """Load the embedded target by its name, a local folder, or a Hugging Face id (at a `revision` of it).

        With `layers` False only embedding, final norm, LM head and tokenizer take memory, for training from features
        that were captured before: whatever needs the decoder layers raises RuntimeError.

        Raises:
            UserError: nothing loadable under that name; the sentence says what was tried.
        """
        if dtype not in DTYPES:
            raise UserError(f"Unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
        source = resolve_target(name, revision)
        where = {"local_files_only": is_local(source), "revision": revision}
        config = None
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
            model = None if layers else _load_without_layers(source, dtype=DTYPES[dtype], **where)
            if model is None:
                model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], **where)
            else:
                config = AutoConfig.from_pretrained(source, **where).get_text_config()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"Target {name!r} could not be loaded: {_first_sentence(error)} "
                f"Give {EMBEDDED_NAME!r}, a Hugging Face id or a folder with config.json and safetensors weights."
            ) from error
        return cls(model.to(device), tokenizer, name, config)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        if not self._layers:
            raise RuntimeError(f"target {self.name!r} was loaded without its layers")
        return self._layers

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head, which may exceed the tokenizer's vocabulary."""
        return self.lm_head.weight.shape[0]

    @property
    def max_length(self) -> int:
        """Longest sequence the positions of the target allow, in tokens."""
        return self.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last layer and the LM head."""
        for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f"):
            if hasattr(self.decoder, name):
                return getattr(self.decoder, name)
        raise UserError(f"Target {self.name!r} ({type(self.decoder).__name__}) has no final norm this version knows.")

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end an answer, from the generation config, the model config and the tokenizer together."""
        found: set[int] = set()
        for source in (self.model.generation_config, self.config, self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            if ids is not None:
                found.update([ids] if isinstance(ids, int) else ids)
        return frozenset(found)

    def new_cache(self) -> Cache:
        """An empty cache: in-place growing where every layer attends to keys, transformers' own otherwise.

        Layers with a sliding window keep all their keys too, since rejected tokens may bring old ones back into the
        window; what a query sees is the mask's business. That takes an attention that is given the mask.
        """
        kinds = getattr(self.config, "layer_types", None) or ["full_attention"]
        if set(kinds) <= _ATTENTION_KINDS and self.config._attn_implementation in ("sdpa", "eager"):
            return growing_cache(self.num_layers)
        return DynamicCache(config=self.config)

    @torch.inference_mode()
    def forward(
        self,
        input_ids: torch.Tensor,
        cache: Cache | None = None,
        *,
        layer_ids: Sequence[int] = (),
        keep_logits: int = 0,
        **model_inputs,
    ) -> TargetOutput:
        """One forward over `input_ids` [B, S] with the logits of the last `keep_logits` positions (0 = all)."""
        with self._capture(layer_ids, stop=False) as captured:
            output = self.model(
                input_ids=input_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep_logits,
                **model_inputs,
            )
        return TargetOutput(output.logits, _concat(captured, layer_ids))

    @torch.no_grad()
    def features(self, input_ids: torch.Tensor, layer_ids: Sequence[int], **model_inputs) -> torch.Tensor:
        """Outputs of the given layers for every token, [B, S, n*H]; layers above the last one are not computed."""
        with self._capture(layer_ids, stop=True) as captured:
            try:
                self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1, **model_inputs)
            except _CaptureComplete:
                pass  # the way out of the forward once every wanted layer has been seen
        return _concat(captured, layer_ids)

    @contextmanager
    def _capture(self, layer_ids: Sequence[int], stop: bool):
        captured: dict[int, torch.Tensor] = {}
        last = max(layer_ids, default=-1)
        if layer_ids and not 0 <= min(layer_ids) <= last < self.num_layers:
            raise UserError(
                f"Layer ids {list(layer_ids)} do not fit target {self.name!r}, "
                f"whose layers are 0 to {self.num_layers - 1}."
            )

        def hook(layer_id: int):
            def keep(_module, _args, output):
                captured[layer_id] = output[0] if isinstance(output, tuple) else output
                if stop and layer_id == last:
                    raise _CaptureComplete

            return keep

        layers = self.layers
        with self._one_at_a_time:
            handles = [layers[i].register_forward_hook(hook(i)) for i in layer_ids]
            try:
                yield captured
            finally:
                for handle in handles:
                    handle.remove()


def load_target_config(name: str, revision: str | None = None):
    """The target's (text) configuration without its weights."""
    try:
        source = resolve_target(name, revision)
        where = {"local_files_only": is_local(source), "revision": revision}
        return AutoConfig.from_pretrained(source, **where).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"Target {name!r} could not be read: {_first_sentence(error)}") from error


def _load_without_layers(source: str, **options) -> nn.Module | None:
    """The model of a configuration that asks for no layers, so that only the other tensors are read from the files.

    None where the family cannot be built or loaded that way.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # all the weights that are left out on purpose would be reported
    try:
        config = AutoConfig.from_pretrained(source, **{k: v for k, v in options.items() if k != "dtype"})
        text = config.get_text_config()
        text.num_hidden_layers = 0
        if getattr(text, "layer_types", None):
            text.layer_types = []
        model, report = AutoModelForCausalLM.from_pretrained(source, config=config, output_loading_info=True, **options)
        return None if report["missing_keys"] else model
    except Exception:  # whatever it was: the caller loads the whole model, and reports what is wrong with it
        return None
    finally:
        logging.set_verbosity(verbosity)


def _decoder_layers(decoder: nn.Module, count: int) -> nn.ModuleList:
    for module in decoder.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"{type(decoder).__name__} has no list of {count} decoder layers: this family is not supported.")


def packed(states: torch.Tensor) -> torch.Tensor:
    """The same [..., H] with the strides of a fresh tensor.

    bf16 linears on any other input copy the whole weight on CPU, twenty times slower. `contiguous()` alone is not
    enough: [1, 7, H] cut out of [1, 8, H] counts as contiguous, and keeps the stride of the larger tensor.
    """
    return states.reshape(-1, states.shape[-1]).contiguous().view(states.shape)


def _concat(captured: dict[int, torch.Tensor], layer_ids: Sequence[int]) -> torch.Tensor | None:
    return torch.cat([captured[i] for i in layer_ids], dim=-1) if layer_ids else None


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:") + "."
