"""The output head and its cross-entropy, without ever holding the logits of a whole batch.

At V = 65,536 the logits of 8 x 1,024 tokens are 2.1 GB in float32, and as much again for their
gradient; a chunk of tokens at a time they stay small.

Shapes: N tokens, C model width, V vocabulary size, n tokens of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a target that has no loss, as in PyTorch
LOGITS_BYTES = 2**29  # of float32 logits at a time on a GPU, whichever type the products have
CPU_CHUNK = 1024  # tokens at a time elsewhere, over the bytes of a number: as fast as any


def chunk_size(x: Tensor, vocab_size: int) -> int:
    """Tokens whose logits are held at a time."""
    if x.device.type == "cuda":
        return max(1, LOGITS_BYTES // (4 * vocab_size))
    return CPU_CHUNK // x.element_size()


def _softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (n,) in float32; the logits (n, V) become their softmax, in place."""
    log_p = logits.float()  # the logits themselves where they are float32
    torch.log_softmax(log_p, -1, out=log_p)
    losses = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    log_p.exp_()
    if log_p is not logits:
        logits.copy_(log_p)
    return losses


def _add(total: Tensor, part: Tensor) -> None:
    """total += part, whose number type is another; compiled, in one pass."""
    total += part


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy a chunk of tokens at a time, gradients included.

    The gradient of a chunk's logits, softmax - one-hot, is at hand while they are, so both
    matrix products of the backward pass are done there and the logits can go. What is V wide
    is passed over as seldom as possible, in memory that all chunks share.
    """

    @staticmethod
    @torch.compiler.disable(recursive=False)  # compile `_softmax` alone: the chunks share memory
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        N, V = len(x), len(weight)
        kept = targets != IGNORED
        targets = targets.where(kept, 0)
        x = x * kept.unsqueeze(1)  # an ignored token adds nothing to the gradient of the weights
        w = weight.to(x.dtype)
        losses, grad_x = x.new_empty(N, dtype=torch.float32), torch.empty_like(x)
        training = any(ctx.needs_input_grad)
        grad_weight = torch.zeros_like(weight) if training else weight
        size = min(N, chunk_size(x, V))
        logits, row = x.new_empty(size, V), torch.arange(size, device=x.device)
        for start in range(0, N, size):
            rows = slice(start, start + size)
            index = targets[rows]
            p = torch.mm(x[rows], w.T, out=logits[: len(index)])  # (size, V)
            losses[rows] = _softmax(p, index)
            if not training:
                continue
            p[row[: len(p)], index] = torch.expm1(-losses[rows]).to(p.dtype)  # p(target) - 1
            torch.mm(p, w, out=grad_x[rows])
            if x.dtype == weight.dtype:
                grad_weight.addmm_(p.T, x[rows])
            else:
                _add(grad_weight, p.T @ x[rows])  # summed in float32
        count = kept.sum().clamp(min=1)
        ctx.gradients = grad_x.mul_(kept.unsqueeze(1) / count), grad_weight, count
        return (losses * kept).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # Handed over: a second V x C copy of the gradient would cost as much as the optimizer.
        grad_x, grad_weight, count = ctx.gradients
        del ctx.gradients
        return grad_x * grad, grad_weight.mul_(grad / count), None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits x @ weight.T, which are never held all at once.

    x (N, C), weight (V, C), targets (N,) int64; float32 scalar: the mean over the targets that
    are not IGNORED, 0 if all are. Under autocast the products are in its dtype and the softmax in
    float32.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not torch.is_grad_enabled():
        x, weight = x.detach(), weight.detach()
    return _LinearCrossEntropy.apply(x, weight, targets)


@torch.no_grad()
def token_nats(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Each target's -log p under the logits x @ weight.T, (N,) float32, 0 where it is IGNORED."""
    size = chunk_size(x, len(weight))
    kept = targets != IGNORED
    parts = []
    for some, index in zip(x.split(size), targets.where(kept, 0).split(size), strict=True):
        log_p = F.linear(some, weight).float()
        torch.log_softmax(log_p, -1, out=log_p)  # in place: V-wide memory is what takes time
        parts.append(-log_p.gather(1, index.unsqueeze(1)).squeeze(1))
    return torch.cat(parts) * kept
