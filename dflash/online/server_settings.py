"""The command line of one SGLang server that captures. Imports nothing heavy: plans are made with it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """What one server serves, and on what. None leaves a choice to SGLang."""

    model: str  # folder or Hugging Face id
    layer_ids: tuple[int, ...]  # 0-based decoder layers; the last one's output cannot be captured
    port: int
    host: str = "127.0.0.1"  # address it listens on
    dtype: str = "bfloat16"
    revision: str | None = None
    context_length: int | None = None  # tokens; prompts of more than this less 7 are refused
    chunked_prefill: int | None = None  # tokens of a prefill chunk
    gpus: tuple[str, ...] = ()  # of tensor parallelism, as CUDA_VISIBLE_DEVICES names them; none on a CPU
    cached_tokens: int = 4096  # on a CPU: size of the KV cache, which takes a minute to set up at SGLang's own choice
    memory_fraction: float | None = None  # of a GPU's memory, for weights and KV cache
    extra: tuple[str, ...] = ()  # more arguments of SGLang, as they are

    @property
    def url(self) -> str:
        """Where clients on the same machine reach it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    def arguments(self) -> list[str]:
        """The arguments of `sglang.launch_server`."""
        arguments = [
            f"--model-path={self.model}",
            f"--host={self.host}",
            f"--port={self.port}",
            f"--dtype={self.dtype}",
            # Names how layer ids are counted; no draft is loaded.
            "--speculative-algorithm=DFLASH",
            "--enable-return-aux-hidden-states",
            "--return-aux-hidden-state-layer-ids",
            *map(str, self.layer_ids),
            "--disable-radix-cache",  # tokens found in it would not be computed, so not captured
            "--skip-server-warmup",
        ]
        optional = {
            "--revision": self.revision,
            "--context-length": self.context_length,
            "--chunked-prefill-size": self.chunked_prefill,
            "--mem-fraction-static": self.memory_fraction,
        }
        arguments += [f"{name}={value}" for name, value in optional.items() if value is not None]
        if self.gpus:
            arguments += [f"--tp-size={len(self.gpus)}"]
        else:
            # An idle scheduler would keep one of the cores busy that the trainer needs.
            arguments += ["--device=cpu", "--attention-backend=torch_native", "--sleep-on-idle"]
            arguments += [f"--max-total-tokens={self.cached_tokens}"]
        return [*arguments, *self.extra]
