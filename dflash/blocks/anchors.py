"""Random anchors: the positions at which a draft block starts during training (arXiv 2602.06036, section on training).

Shapes: B sequences, S tokens, N anchor slots. N is static: sequences with fewer candidates fill the rest with dropped
anchors (`keep` False), so shapes never change and nothing is read back to the host.
"""

import torch


def candidate_mask(loss_mask: torch.Tensor) -> torch.Tensor:
    """Positions that may be an anchor, [B, S]: the token and its successor are both supervised.

    A block may run past the end of the text (its labels there carry no weight), so short answers still teach.
    """
    candidates = torch.zeros_like(loss_mask)
    candidates[:, :-1] = loss_mask[:, :-1] & loss_mask[:, 1:]
    return candidates


def sample_anchors(
    loss_mask: torch.Tensor, num_anchors: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw anchors uniformly without replacement.

    Args:
        loss_mask: [B, S] bool, True on supervised tokens.
        num_anchors: N, anchor slots per sequence.
        generator: source of randomness on the mask's device; None takes the global one.

    Returns:
        anchors [B, N] int64, ascending, 0 where dropped; keep [B, N] bool.
    """
    batch, length = loss_mask.shape
    candidates = candidate_mask(loss_mask)
    keys = torch.rand(batch, length, device=loss_mask.device, generator=generator).masked_fill(~candidates, -1.0)
    drawn = min(num_anchors, length)
    best, positions = keys.topk(drawn, dim=1)
    # Dropped slots sort behind every real anchor.
    positions = positions.masked_fill(best < 0, length).sort(dim=1).values
    positions = torch.nn.functional.pad(positions, (0, num_anchors - drawn), value=length)
    keep = positions < length
    return positions.masked_fill(~keep, 0), keep
