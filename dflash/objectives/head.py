"""Cross-entropy through the target's LM head in chunks, without ever holding all logits.

Shapes: R weighted rows, E hidden size, V vocabulary, C columns that are multiplied: V, or fewer candidates.
"""

import torch

from dflash.objectives.candidates import Candidates

# Rows per chunk: 128 x 49,152 float32 logits are 25 MB, which stays the peak whatever the number of anchors.
CHUNK_ROWS = 128


class ChunkedCrossEntropy(torch.autograd.Function):
    """Per-row losses and hits of a frozen linear head; the gradient is made chunk by chunk in the same pass.

    One buffer for logits serves all chunks: fresh vocabulary-sized temporaries cost more in page clearing than the
    product itself.
    """

    @staticmethod
    def forward(ctx, hidden, head, labels, weights, candidates):
        """hidden [R, E], head [V, E], labels [R], weights [R] -> losses [R] float32 (unweighted), correct [R] bool."""
        rows = hidden.shape[0]
        hidden_cast = hidden.detach().to(head.dtype)
        losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        correct = torch.empty(rows, dtype=torch.bool, device=hidden.device)
        grad = torch.empty_like(hidden_cast) if ctx.needs_input_grad[0] else None
        columns = head if candidates is None else head[candidates.ids]
        logits_buffer = head.new_empty(min(rows, CHUNK_ROWS), columns.shape[0])
        probs_buffer = torch.empty_like(logits_buffer, dtype=torch.float32)
        for start in range(0, rows, CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, rows))
            size = chunk.stop - chunk.start
            logits, probs = logits_buffer[:size], probs_buffer[:size]
            torch.mm(hidden_cast[chunk], columns.t(), out=logits)
            scored = _score if candidates is None else _score_candidates
            losses[chunk], correct[chunk], outside = scored(
                hidden_cast[chunk], head, logits, probs, labels[chunk], weights[chunk], candidates
            )
            if grad is not None:
                logits.copy_(probs)
                torch.mm(logits, columns, out=grad[chunk])
                if outside is not None:
                    grad[chunk] += outside
        ctx.save_for_backward(grad)
        ctx.hidden_dtype = hidden.dtype
        ctx.mark_non_differentiable(correct)
        weighted = (losses * weights).sum()
        return weighted, losses, correct

    @staticmethod
    def backward(ctx, grad_weighted, _grad_losses, _grad_correct):
        (grad,) = ctx.saved_tensors
        return (grad * grad_weighted).to(ctx.hidden_dtype), None, None, None, None


def _score(hidden, head, logits, probs, labels, weights, _candidates):
    """Losses and hits of one chunk; leaves weight x (softmax - one-hot) in `probs`, the gradient at the logits."""
    target = labels[:, None]
    top, best = logits.max(-1, keepdim=True)
    # softmax in float32, in place: probs = exp(logits - max) / sum
    torch.sub(logits, top, out=probs)
    at_label = probs.gather(-1, target)
    probs.exp_()
    total = probs.sum(-1, keepdim=True)
    probs.mul_(weights[:, None] / total)
    probs.scatter_add_(-1, target, -weights[:, None])
    return (total.log() - at_label).squeeze(-1), (best == target).squeeze(-1), None


def _score_candidates(hidden, head, logits, probs, labels, weights, candidates: Candidates):
    """The same over candidates; also the gradient [rows, E] that flows through labels which are none of them."""
    column = candidates.column[labels][:, None]
    inside = column >= 0
    column = column.clamp(min=0)
    label_rows = head[labels]
    label_logit = torch.where(
        inside, logits.gather(-1, column).float(), (hidden.float() * label_rows.float()).sum(-1, keepdim=True)
    )
    best_logit, best = logits.max(-1, keepdim=True)
    top = torch.maximum(best_logit.float(), label_logit)
    torch.sub(logits, top, out=probs)
    probs.add_(candidates.log_count).exp_()
    # The label stands for itself alone, whether it was drawn, frequent or neither.
    at_label = (label_logit - top).exp()
    probs.scatter_(-1, column, torch.where(inside, at_label, probs.gather(-1, column)))
    total = probs.sum(-1, keepdim=True) + at_label.masked_fill(inside, 0)
    scale = weights[:, None] / total
    probs.mul_(scale)
    probs.scatter_add_(-1, column, -weights[:, None] * inside)
    correct = torch.where(inside, best == column, label_logit > best_logit)
    through_label = (at_label * scale - weights[:, None]).masked_fill(inside, 0).to(head.dtype)
    return (total.log() - (label_logit - top)).squeeze(-1), correct.squeeze(-1), through_label * label_rows


def weighted_cross_entropy(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    candidates: Candidates | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of weight x cross-entropy (differentiable), and per row the plain loss and whether argmax was right.

    Args:
        hidden: [R, E] final-normed draft states. head: [V, E], frozen. labels: [R]. weights: [R] float32.
        candidates: estimate the softmax from these tokens; None takes the whole vocabulary.
    """
    return ChunkedCrossEntropy.apply(hidden, head, labels, weights, candidates)
