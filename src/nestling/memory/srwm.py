"""The self-referential weight matrix (Irie, Schlag, Csordas, Schmidhuber, arXiv 2202.05780): a delta rule on itself.

One matrix gives the output, the key and the query of its own update, and that update's four learning rates:

    y_t, k_t, q_t, b_t = W_{t-1} x_t
    W_t = W_{t-1} + sigmoid(b_t) * W_{t-1} (phi(q_t) - phi(k_t)) phi(k_t)^T          phi = softmax

so what is stored under phi(k_t) moves towards what is stored under phi(q_t); each rate is that of its own rows, those
of y, k, q and b. It is the delta rule (Nested Learning, Eq. 65) with self-generated values, but no member of the chunk
algebra: key and query of a token depend on every write before it, so the tokens go one after the other, whatever the
machine. `srwm_scan` is the definition; `srwm` is the same map with few operations a token, whose backward pass keeps a
few rows of every token and no matrix: it takes each write back from the last W. What that loses is the rounding of a
sum, as the rows that depend on W are not computed again.

Shapes: N independent matrices (batch times heads), T tokens, d width, R = 3 d + 4 rows of W. Matrices are kept
transposed, `(N, d, R)`: a token then is a row that meets contiguous memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RATES = 4
"""Learning rates that the matrix gives itself: of the rows of y, k, q, and of the rates themselves."""


def rows(width: int) -> int:
    """Rows of the matrix for keys of this width, `3 width + 4`."""
    return 3 * width + RATES


def srwm_scan(x: Tensor, weight: Tensor, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, token by token; see `srwm`."""
    width, outputs = x.shape[-1], []
    for t in range(x.shape[1]):
        y, k, q, b = (x[:, t, None] @ weight).split([width, width, width, RATES], -1)
        key, query, rate = k.softmax(-1), q.softmax(-1), b.sigmoid()
        if live is not None:
            rate = rate * live[:, t, None, None]
        rate = rate.repeat_interleave(torch.tensor([width] * 3 + [RATES], device=x.device), -1)
        weight = weight + key.mT @ (rate * (query @ weight - key @ weight))
        outputs.append(y)
    return torch.cat(outputs, 1), weight


def srwm(x: Tensor, weight: Tensor, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Outputs `(N, T, d)` and the matrix after the last token `(N, d, R)`.

    Args:
        x: `(N, T, d)`, phi already applied.
        weight: `W_0^T (N, d, R)`, rows of W in the order y, k, q, b; left as it is.
        live: `(N, T)`, 0 for padding, which writes nothing, else 1; None for all ones.
    """
    y, weight = _Recurrence.apply(x, weight, live)
    return y, weight


def _spread(width: int, like: Tensor) -> Tensor:
    """Which rows each rate is of, `(4, R)`: a product with it hands rates to rows, one with its transpose sums rows."""
    sizes = torch.tensor([width] * 3 + [RATES])
    return torch.eye(RATES).repeat_interleave(sizes, 1, output_size=rows(width)).to(like)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, live):
        width, weight, spread = x.shape[-1], weight.clone(), _spread(x.shape[-1], x)
        kept = []
        for t in range(x.shape[1]):
            seen = torch.bmm(x[:, t, None], weight)[:, 0]
            feature = seen[:, width : 3 * width].unflatten(1, (2, width)).softmax(-1)
            rate = seen[:, 3 * width :].sigmoid()
            rate = rate if live is None else rate * live[:, t, None]
            move = torch.bmm((feature[:, 1] - feature[:, 0])[:, None], weight)[:, 0]
            weight.addcmul_(feature[:, 0, :, None], (move * (rate @ spread))[:, None])
            kept.append((seen[:, :width], feature, rate, move))
        y, *kept = (torch.stack(group, 1) for group in zip(*kept, strict=True))
        ctx.save_for_backward(x, weight, *kept)
        return y, weight

    @staticmethod
    @once_differentiable
    def backward(ctx, y_grad, weight_grad):
        x, weight, features, rates, moves = ctx.saved_tensors
        weight, total, spread = weight.clone(), weight_grad.clone(), _spread(x.shape[-1], x)
        x_grads = []
        for t in reversed(range(x.shape[1])):
            feature, rate, move = features[:, t], rates[:, t], moves[:, t]
            key, strength = feature[:, 0], rate @ spread
            written = (move * strength)[:, None]
            weight.addcmul_(key[:, :, None], written, value=-1)
            # Through the write: of what was written, of the key it went to, of its rates.
            back = torch.bmm(key[:, None], total)[:, 0]
            key_grad = torch.bmm(written, total.mT)[:, 0]
            rate_grad = (back * move) @ spread.mT * rate * (1 - rate)
            move_grad = back * strength
            # Through the two reads: of query minus key, and of the token.
            query_grad = torch.bmm(move_grad[:, None], weight.mT)[:, 0]
            slope = torch.stack((key_grad - query_grad, query_grad), 1) * feature
            slope = slope - feature * slope.sum(-1, keepdim=True)
            seen_grad = torch.cat((y_grad[:, t], slope.flatten(1), rate_grad), 1)
            x_grads.append(torch.bmm(seen_grad[:, None], weight.mT))
            read = torch.stack((feature[:, 1] - key, x[:, t]), 2)
            total.baddbmm_(read, torch.stack((move_grad, seen_grad), 1))
        return torch.cat(x_grads[::-1], 1), total, None
