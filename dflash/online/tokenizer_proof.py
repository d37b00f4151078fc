"""Do a server and the trainer read text alike? Features of other tokens would train, and fail only in use."""

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dflash.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words, numbers, code, white space, scripts and signs: what tokenizers disagree about.
PROBE = (
    "The quick brown fox jumps over the lazy dog.",
    "  Leading spaces,\ttabs\nnew lines\r\n\n\nand 1234567890 3.14159 -42 1e-5",
    "def f(x: int) -> str:\n    return f'{x!r}'  # {\"a\": [1, 2]}",
    "Grüße, naïve café, Ελλάδα, Привет, 你好世界, こんにちは, 안녕하세요, שלום, नमस्ते",
    "\u00e9 e\u0301 \u200b \u2014 \u2026 \U0001f9ea \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|></s><s>[INST]<think>",
)
_MOST_ADDED = 1024  # some tokenizers reserve thousands


def probe_of(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Texts to compare on: those of `PROBE`, and every special or added token of this tokenizer between two words."""
    special = set(tokenizer.all_special_tokens)
    added = sorted({*special, *tokenizer.get_added_vocab()}, key=lambda token: (token not in special, token))
    return [*PROBE, *(f"one{token}two" for token in added[:_MOST_ADDED])]


def require_same_tokenizer(url: str, tokenizer: "PreTrainedTokenizerBase", timeout: float = 30.0) -> None:
    """Have the server tokenize the probe and compare with the trainer's `tokenizer`.

    Raises:
        UserError: they differ, or the server does not tokenize.
    """
    probe = probe_of(tokenizer)
    request = urllib.request.Request(
        f"{url}/tokenize",
        json.dumps({"prompt": probe, "add_special_tokens": False}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            theirs = json.loads(response.read())["tokens"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Server {url} does not tokenize ({error}): is it an SGLang server of 0.5.14 or later?"
        ) from error
    ours = [tokenizer.encode(text, add_special_tokens=False) for text in probe]
    if theirs != ours:
        place = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), 0)
        raise UserError(
            f"Server {url} has another tokenizer than the trainer (hash {digest(theirs)} instead of {digest(ours)}; it "
            f"reads {probe[place]!r} differently): start it with the run's target and revision."
        )


def digest(tokens: Sequence[Sequence[int]]) -> str:
    """Of the probe's tokens: equal where tokenizers agree on it."""
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:12]
