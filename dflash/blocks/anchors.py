"""Random anchors: the positions at which a draft block starts during training (arXiv 2602.06036, section on training).

Shapes: B sequences, S tokens, N anchor slots. N is static: sequences with fewer candidates fill the rest with dropped
anchors (`keep` False), so shapes never change and nothing is read back to the host.
"""

from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None


def candidate_mask(loss_mask: torch.Tensor, document_start: torch.Tensor | None = None) -> torch.Tensor:
    """Positions that may be an anchor, [B, S]: the token and its successor are supervised and of one document.

    A block may run past the end of its document (its labels there carry no weight), so short answers still teach.
    """
    candidates = torch.zeros_like(loss_mask)
    candidates[:, :-1] = loss_mask[:, :-1] & loss_mask[:, 1:]
    if document_start is not None:
        candidates[:, :-1] &= document_start[:, :-1] == document_start[:, 1:]
    return candidates


def sample_anchors(
    loss_mask: torch.Tensor,
    num_anchors: int,
    generator: Generators = None,
    document_start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw anchors uniformly without replacement.

    Args:
        loss_mask: [B, S] bool, True on supervised tokens.
        num_anchors: N, anchor slots per sequence.
        generator: one source of randomness for all rows, on the mask's device (None takes the global one), or one per
            row. A row with a generator of its own on the CPU gets the same anchors whoever shares its batch, however
            far it is padded and wherever the mask lies.
        document_start: [B, S] int64, where the document of each token begins; None: one document per row.

    Returns:
        anchors [B, N] int64, ascending, 0 where dropped; keep [B, N] bool.
    """
    batch, length = loss_mask.shape
    candidates = candidate_mask(loss_mask, document_start)
    keys = _random_keys(batch, length, loss_mask.device, generator).masked_fill(~candidates, -1.0)
    drawn = min(num_anchors, length)
    best, positions = keys.topk(drawn, dim=1)
    # Dropped slots sort behind every real anchor.
    positions = positions.masked_fill(best < 0, length).sort(dim=1).values
    positions = torch.nn.functional.pad(positions, (0, num_anchors - drawn), value=length)
    keep = positions < length
    return positions.masked_fill(~keep, 0), keep


def _random_keys(batch: int, length: int, device: torch.device, generator: Generators) -> torch.Tensor:
    """[B, S] uniform in [0, 1)."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(batch, length, device=device, generator=generator)
    if len(generator) != batch:
        raise ValueError(f"{len(generator)} generators were given for {batch} rows")
    # The CPU draws one number after the other, so that a longer row begins with the numbers of a shorter one.
    return torch.stack([torch.rand(length, device=g.device, generator=g) for g in generator]).to(device)
