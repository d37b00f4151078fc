"""How far blocks got on one given text, as counts. Needs no torch, so that results can be read without it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ConversationScore:
    """Counts of one held-out conversation for the slots 1..K-1 of its blocks; they pool by adding."""

    id: str
    count: tuple[int, ...]  # supervised slots
    correct: tuple[int, ...]  # those whose most likely token is the text's
    reached: tuple[int, ...]  # those that are correct together with every slot before them
