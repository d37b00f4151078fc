"""The text of single tokens, such that the pieces of a sequence join up to its whole text."""

from collections.abc import Sequence

# Tokens of context that decide how a tokenizer renders the next one (leading spaces, half characters).
_CONTEXT = 6
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class PieceDecoder:
    """Turns a growing list of token ids into pieces, one per token.

    A character spread over several tokens belongs to the token that completes it; the others are empty.
    """

    def __init__(self, tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(before[-_CONTEXT:])
        self._shown = len(self._decode(self._context))

    def push(self, token: int) -> str:
        """The piece that `token` adds to the text so far."""
        self._context.append(token)
        text = self._decode(self._context)
        if text.endswith(_INCOMPLETE) and len(self._context) < 2 * _CONTEXT:
            return ""
        piece = text[self._shown :]
        self._context = self._context[-_CONTEXT:]
        self._shown = len(self._decode(self._context))
        return piece

    def fork(self) -> "PieceDecoder":
        """An independent decoder at the same place, for tokens that may be rejected."""
        twin = object.__new__(PieceDecoder)
        twin._tokenizer, twin._context, twin._shown = self._tokenizer, list(self._context), self._shown
        return twin

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """One piece of text per token id, special tokens included."""
    decoder = PieceDecoder(tokenizer)
    return [decoder.push(token) for token in ids]
