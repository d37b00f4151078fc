"""Cross-entropy through the target's LM head in chunks, without ever holding all logits.

Shapes: R weighted rows, E hidden size, V vocabulary.
"""

import torch

# Rows per chunk: 128 x 49,152 float32 logits are 25 MB, which stays the peak whatever the number of anchors.
CHUNK_ROWS = 128


class ChunkedCrossEntropy(torch.autograd.Function):
    """Per-row losses and hits of a frozen linear head; the gradient is made chunk by chunk in the same pass.

    One buffer for logits serves all chunks: fresh vocabulary-sized temporaries cost more in page clearing than the
    product itself.
    """

    @staticmethod
    def forward(ctx, hidden, head, labels, weights):
        """hidden [R, E], head [V, E], labels [R], weights [R] -> losses [R] float32 (unweighted), correct [R] bool."""
        rows = hidden.shape[0]
        hidden_cast = hidden.detach().to(head.dtype)
        losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        correct = torch.empty(rows, dtype=torch.bool, device=hidden.device)
        grad = torch.empty_like(hidden_cast) if ctx.needs_input_grad[0] else None
        logits_buffer = head.new_empty(min(rows, CHUNK_ROWS), head.shape[0])
        probs_buffer = torch.empty_like(logits_buffer, dtype=torch.float32)
        for start in range(0, rows, CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, rows))
            size = chunk.stop - chunk.start
            logits, probs = logits_buffer[:size], probs_buffer[:size]
            torch.mm(hidden_cast[chunk], head.t(), out=logits)
            target = labels[chunk, None]
            top, best = logits.max(-1, keepdim=True)
            # softmax in float32, in place: probs = exp(logits - max) / sum
            torch.sub(logits, top, out=probs)
            at_label = probs.gather(-1, target)
            probs.exp_()
            total = probs.sum(-1, keepdim=True)
            losses[chunk] = (total.log() - at_label).squeeze(-1)
            correct[chunk] = (best == target).squeeze(-1)
            if grad is not None:
                probs.mul_(weights[chunk, None] / total)
                probs.scatter_add_(-1, target, -weights[chunk, None])
                logits.copy_(probs)
                torch.mm(logits, head, out=grad[chunk])
        ctx.save_for_backward(grad)
        ctx.hidden_dtype = hidden.dtype
        ctx.mark_non_differentiable(correct)
        weighted = (losses * weights).sum()
        return weighted, losses, correct

    @staticmethod
    def backward(ctx, grad_weighted, _grad_losses, _grad_correct):
        (grad,) = ctx.saved_tensors
        return (grad * grad_weighted).to(ctx.hidden_dtype), None, None, None


def weighted_cross_entropy(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of weight x cross-entropy (differentiable), and per row the plain loss and whether argmax was right.

    Args:
        hidden: [R, E] final-normed draft states. head: [V, E], frozen. labels: [R]. weights: [R] float32.
    """
    return ChunkedCrossEntropy.apply(hidden, head, labels, weights)
