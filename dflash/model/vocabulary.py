"""The draft's vocabulary: the tokens it proposes from when decoding, where that is not all of the target's.

On a small machine the LM head costs more than the draft itself, while nearly all text uses a third of its rows or fewer
(FR-Spec, arXiv 2502.14856). Any draft can be given a vocabulary, without training: a token outside it is never
proposed, and comes from the target instead. The text stays the target's own. It is a file of its own in the draft's
folder, so other tools load the folder as ever and propose from all tokens.

Shapes: D tokens in the draft's vocabulary, V in the target's, K rows, E hidden size.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dflash.errors import UserError
from dflash.files import write_atomically
from dflash.target import packed

VOCABULARY_FILE = "draft_vocabulary.json"


def save_vocabulary(folder: Path, ids: torch.Tensor | None) -> None:
    """Write `ids` [D] into a draft's folder; None removes what is there."""
    if ids is None:
        (folder / VOCABULARY_FILE).unlink(missing_ok=True)
    else:
        write_atomically(folder / VOCABULARY_FILE, json.dumps({"token_ids": ids.tolist()}) + "\n")


def load_vocabulary(folder: Path, vocab_size: int) -> torch.Tensor | None:
    """Ascending ids [D], None when the folder has no such file.

    Raises:
        UserError: the file is damaged, or names no tokens of this vocabulary.
    """
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return None
    try:
        ids = torch.tensor(sorted(set(json.loads(path.read_text(encoding="utf-8"))["token_ids"])), dtype=torch.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is no list of token ids ({error}): restore it, or remove it to propose from all tokens."
        ) from error
    if len(ids) == 0 or ids[0] < 0 or ids[-1] >= vocab_size:
        raise UserError(f"{str(path)!r} names tokens outside the vocabulary of {vocab_size}: remove it, or restore it.")
    return ids


class DraftHead:
    """The target's LM head cut down to the draft's vocabulary; with none, the target's own."""

    def __init__(self, lm_head: nn.Module, ids: torch.Tensor | None) -> None:
        self._lm_head = lm_head
        self._ids = None
        if ids is not None:
            self._ids = ids.to(lm_head.weight.device)
            self._weight = lm_head.weight[self._ids].contiguous()
            bias = getattr(lm_head, "bias", None)
            self._bias = None if bias is None else bias[self._ids]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Draft states [K, E] -> logits [K, D]."""
        if self._ids is None:
            return self._lm_head(hidden)
        return F.linear(packed(hidden), self._weight, self._bias)

    def tokens(self, columns: torch.Tensor) -> torch.Tensor:
        """The target's token ids of columns of the logits."""
        return columns if self._ids is None else self._ids[columns]

    def spread(self, probs: torch.Tensor) -> torch.Tensor:
        """Probabilities [K, D] as a distribution over the target's vocabulary [K, V], zero elsewhere."""
        if self._ids is None:
            return probs
        return probs.new_zeros(len(probs), self._lm_head.weight.shape[0]).index_copy_(1, self._ids, probs)
