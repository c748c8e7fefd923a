"""Fused reading of the residual MLP memory: the projections of Eq. 86 and the targets of Eq. 87.

Twins of functions of memory/stack.py with backward passes of their own; letters and layout as in kernels/mlp_chunk.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nestling.memory.stack import Layers, Readers
from nestling.memory.structure import Structure

gelu_grad = torch.ops.aten.gelu_backward


def inner(weight: Tensor) -> Tensor:
    """`(M, N, ...)` as contiguous `(N, M, ...)`; no copy for what this module returned."""
    return weight.transpose(0, 1).contiguous()


def _values(w1: Tensor, w2: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`M(x) (N, P, d, C)` of weights `(N, P, ...)` at `x (N, d, C)`, and `z` and `a`."""
    z = torch.bmm(w2.flatten(1, 2), x)
    a = F.gelu(z)
    y = torch.bmm(w1.flatten(0, 1), a.view(-1, w2.shape[2], x.shape[2]))
    return y.view(*w1.shape[:3], -1).add_(x.unsqueeze(1)), z, a


def _values_backward(dy: Tensor, w1: Tensor, w2: Tensor, x: Tensor, z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `w1`, `w2` and `x` from that of `_values`, `dy (N, P, d, C)`."""
    rows = dy.flatten(0, 1)
    da = torch.bmm(w1.flatten(0, 1).mT, rows)
    dz = gelu_grad(da.view_as(z), z)
    dw1, dw2 = torch.bmm(rows, a.view_as(da).mT), torch.bmm(dz, x.mT)
    return dw1.view(w1.shape), dw2.view(w2.shape), dy.sum(1).baddbmm_(w2.flatten(1, 2).mT, dz)


class _Read(torch.autograd.Function):
    """`M(x)` of the first memories: `counts[i]` of them read `xs[i] (N, C, d)`, giving `(N, C, d)` each."""

    @staticmethod
    def forward(ctx, W1, W2, counts, *xs):
        W1, W2 = inner(W1), inner(W2)
        outputs, kept, first = [], [], 0
        for x, count in zip(xs, counts, strict=True):
            some = slice(first, first := first + count)
            x = x.mT.contiguous()
            y, *rest = _values(W1[:, some], W2[:, some], x)
            outputs += (row.mT for row in y.unbind(1))
            kept += [x, *rest]
        ctx.save_for_backward(W1, W2, *kept)
        ctx.counts = counts
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        W1, W2, *kept = ctx.saved_tensors
        dW1, dW2, dxs, first = torch.zeros_like(W1), torch.zeros_like(W2), [], 0
        for i, count in enumerate(ctx.counts):
            some = slice(first, first := first + count)
            dy = torch.stack([dy.mT for dy in dys[some]], 1)
            dW1[:, some], dW2[:, some], dx = _values_backward(dy, W1[:, some], W2[:, some], *kept[3 * i : 3 * i + 3])
            dxs.append(dx.mT)
        return dW1.transpose(0, 1), dW2.transpose(0, 1), None, *dxs


def mlp_read(structure: Structure, weights: Layers, readers: Readers) -> list[Tensor]:
    """The twin of `memory.stack.read`."""
    xs, counts = zip(*readers, strict=True)
    return list(_Read.apply(*weights, counts, *xs))  # pyright: ignore[reportArgumentType]


class _Target(torch.autograd.Function):
    """`unit(M(x))` of all memories."""

    @staticmethod
    def forward(ctx, W1, W2, x, eps):
        W1, W2, x = inner(W1), inner(W2), x.mT.contiguous()
        y, z, _ = _values(W1, W2, x)
        length = scale(y, eps)
        ctx.save_for_backward(W1, W2, x, z, y.mul_(length), length)
        return y.permute(1, 0, 3, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        W1, W2, x, z, y, length = ctx.saved_tensors
        dy = scale_backward(dy.permute(1, 0, 3, 2), y, length)
        dW1, dW2, dx = _values_backward(dy, W1, W2, x, z, F.gelu(z))
        return dW1.transpose(0, 1), dW2.transpose(0, 1), dx.mT, None


def mlp_target(structure: Structure, weights: Layers, v: Tensor) -> Tensor:
    """The twin of `memory.stack.target`."""
    return _Target.apply(*weights, v, 1e-6)  # pyright: ignore[reportReturnType]


def scale(x: Tensor, eps: float, dim: int = -2) -> Tensor:
    """`1 / sqrt(|x|^2 + eps)` along `dim`."""
    return (x * x).sum(dim, keepdim=True).add_(eps).rsqrt_()


def scale_backward(dy: Tensor, y: Tensor, scale: Tensor, dim: int = -2) -> Tensor:
    """The gradient of `x` where `y = x * scale(x, .)`."""
    return torch.addcmul(dy, y, (dy * y).sum(dim, keepdim=True), value=-1).mul_(scale)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        length = scale(x, eps, -1)
        y = x * length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        y, length = ctx.saved_tensors
        return scale_backward(dy, y, length, -1), None


def mlp_unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """The twin of `memory.stack.unit`."""
    return _Normalize.apply(x, eps)  # pyright: ignore[reportReturnType]


class _Project(torch.autograd.Function):
    """`unit(M_v(value))`, `unit(M_k(key))` and what the gates read of `M_eta(key)` and `M_alpha(key)`.

    A gate `w` reads `w^T (x + W1 a) = w^T x + (W1^T w)^T a`: one row of the memory in place of `d`.
    """

    @staticmethod
    def forward(ctx, W1, W2, value, key, gates, eps):
        W1, W2 = inner(W1), inner(W2)
        value, key = value.mT.contiguous(), key.mT.contiguous()
        v, zv, _ = _values(W1[:, :1], W2[:, :1], value)
        z = torch.bmm(W2[:, 1:4].flatten(1, 2), key)
        a = F.gelu(z).view(len(key), 3, -1, key.shape[2])
        k = torch.baddbmm(key, W1[:, 1], a[:, 0])
        short = (gates.unsqueeze(2) @ W1[:, 2:4]).squeeze(2)
        raw = torch.bmm(gates, key).unsqueeze(2).add_(short.unsqueeze(2) @ a[:, 1:]).squeeze(2)
        scale_v, scale_k = scale(v, eps), scale(k, eps)
        v, k = v.mul_(scale_v), k.mul_(scale_k)
        ctx.save_for_backward(W1, W2, value, key, gates, zv, z, short, v, k, scale_v, scale_k)
        return v.squeeze(1).mT, k.mT, raw

    @staticmethod
    @once_differentiable
    def backward(ctx, dv, dk, draw):
        W1, W2, value, key, gates, zv, z, short, v, k, scale_v, scale_k = ctx.saved_tensors
        av, a = F.gelu(zv), F.gelu(z).view(len(key), 3, -1, key.shape[2])
        dW1, dW2 = torch.zeros_like(W1), torch.zeros_like(W2)
        dv = scale_backward(dv.mT.unsqueeze(1), v, scale_v)
        dW1[:, :1], dW2[:, :1], dvalue = _values_backward(dv, W1[:, :1], W2[:, :1], value, zv, av)
        dk, row = scale_backward(dk.mT, k, scale_k), draw.unsqueeze(2)
        da = torch.empty_like(a)
        da[:, 0] = torch.bmm(W1[:, 1].mT, dk)
        da[:, 1:] = short.unsqueeze(3) * row
        dshort = row @ a[:, 1:].mT
        dW1[:, 1] = torch.bmm(dk, a[:, 0].mT)
        dW1[:, 2:4] = gates.unsqueeze(3) * dshort
        dgates = torch.bmm(draw, key.mT).add_((dshort @ W1[:, 2:4].mT).squeeze(2))
        dz = gelu_grad(da.view_as(z), z)
        dW2[:, 1:4] = torch.bmm(dz, key.mT).view(len(key), 3, *W2.shape[2:])
        dkey = dk.baddbmm_(W2[:, 1:4].flatten(1, 2).mT, dz).baddbmm_(gates.mT, draw)
        return dW1.transpose(0, 1), dW2.transpose(0, 1), dvalue.mT, dkey.mT, dgates, None


def mlp_project(structure: Structure, weights: Layers, value: Tensor, key: Tensor, gates: Tensor) -> tuple[Tensor, ...]:
    """The twin of `memory.stack.project`."""
    return _Project.apply(*weights, value, key, gates, 1e-6)  # pyright: ignore[reportReturnType]
