"""Fused twins of the residual MLP memory (Eq. 89-90), with backward passes written by hand.

They compute what the memory algebra computes for `M(x) = x + W1 gelu(W2 x)` with the L2 objective, the direct DGD step
on `W1`, the averaged gradient step on `W2`, retention towards an anchor, causal reads and no momentum; they keep only
what the backward pass cannot rebuild cheaply. No second derivatives.

Shapes: `M` memories, `N` batch times heads, `C` tokens of the chunk, `d` key width, `h` hidden width;
`W1 (M, N, d, h)`, `W2 (M, N, h, d)`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nestling.memory import chunk
from nestling.memory.dgd import DGD
from nestling.memory.feature import Identity
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2
from nestling.memory.retention import Decay
from nestling.memory.stack import Advanced, Kernel, Layers, Piece, advance
from nestling.memory.structure import ResidualMLP, Structure

_gelu_grad = torch.ops.aten.gelu_backward


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W1, W2):
        some = len(x) if x.dim() == W1.dim() else len(W1)
        z = x @ W2[:some].mT
        ctx.save_for_backward(x, W1, W2, z)
        return torch.matmul(F.gelu(z), W1[:some].mT).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, W1, W2, z = ctx.saved_tensors
        some = len(z)
        dz = _gelu_grad(dy @ W1[:some], z)
        dx = (dz @ W2[:some]).add_(dy) if ctx.needs_input_grad[0] else None
        dW1, dW2 = dy.mT @ F.gelu(z), dz.mT @ x
        if some < len(W1):
            dW1, dW2 = (torch.cat([dW, dW.new_zeros(len(W1) - some, *dW.shape[1:])]) for dW in (dW1, dW2))
        return dx, dW1, dW2


def mlp_read(structure: Structure, weights: Layers, x: Tensor) -> Tensor:
    """The twin of `memory.stack.read`."""
    return _Read.apply(x, *weights)  # pyright: ignore[reportReturnType]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        scale = x.square().sum(-1, keepdim=True).add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        y, scale = ctx.saved_tensors
        return torch.addcmul(dy, y, (dy * y).sum(-1, keepdim=True), value=-1).mul_(scale), None


def mlp_unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """The twin of `memory.stack.unit`."""
    return _Normalize.apply(x, eps)  # pyright: ignore[reportReturnType]


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, W1, W2, D1, D2, k, target, eta, log_alpha, q, chunk_size):
        eta = eta.unsqueeze(-1)
        g, G = _decays(log_alpha)
        gp, Gp = _before(g, G)
        # Features and error at the boundary, and the rows that the two rules write.
        z = k @ W2.mT
        a = F.gelu(z)
        error = torch.matmul(a, W1.mT).add_(k).sub_(target)
        fade = a @ D1.mT
        f = eta / (1 + eta * a.square().sum(-1, keepdim=True))
        lower = (a @ a.mT).mul_(Gp).mul_(f)
        rhs = torch.addcmul(error, fade, gp - 1).mul_(f).neg_()
        U = torch.linalg.solve_triangular(lower, rhs, upper=False, unitriangular=True)
        back = error @ W1
        c = _mean_step(eta, k, chunk_size)
        delta = _gelu_grad(back, z)
        Y = delta.mul_(_bound(delta) * c)
        # States at the chunk's end.
        gC, w = g[:, -1:], G[:, -1].unsqueeze(-1)
        D1_end = ((w * U).mT @ a).addcmul_(gC, D1)
        D2_end = ((w * Y).mT @ k).addcmul_(gC, D2)
        y, kept = None, ()
        if q is not None:
            y, *kept = _causal_read(q, k, W1[-1], W2[-1], D1[-1], D2[-1], g, G, a[-1], U[-1], Y[-1])
        ctx.save_for_backward(W1, W2, D1, D2, k, eta, g, G, z, error, fade, U, back, q, *kept)
        ctx.chunk_size = chunk_size
        return y, D1_end, D2_end

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dD1_end, dD2_end):
        W1, W2, D1, D2, k, eta, g, G, z, error, fade, U, back, q, *kept = ctx.saved_tensors
        gp, Gp = _before(g, G)
        gC, w = g[:, -1:], G[:, -1].unsqueeze(-1)
        a, slope = F.gelu(z), _gelu_grad(torch.ones_like(z), z)
        f = eta / (1 + eta * a.square().sum(-1, keepdim=True))
        c = _mean_step(eta, k, ctx.chunk_size)
        delta = back * slope
        r = _bound(delta)
        Y = delta * (r * c)
        # States at the chunk's end.
        dD1, dD2 = gC * dD1_end, gC * dD2_end
        dU, dY = a @ dD1_end.mT, k @ dD2_end.mT
        dw = ((dU * U).sum(-1) + (dY * Y).sum(-1)).sum(0)
        dgC = ((dD1_end * D1).sum((-1, -2)) + (dD2_end * D2).sum((-1, -2))).sum(0)
        da, dk = (w * U) @ dD1_end, (w * Y) @ dD2_end
        dU.mul_(w)
        dY.mul_(w)
        dg, dG, dq, read_W = torch.zeros_like(g), torch.zeros_like(G), None, None
        if q is not None:
            dq, dk_read, read_W, parts, dg, dG = _causal_read_backward(
                dy, q, *kept, k, W1[-1], W2[-1], D1[-1], D2[-1], g, G, a[-1], U[-1], Y[-1]
            )
            for total, part in zip((dD1, dD2, da, dU, dY, dk), (*parts, dk_read), strict=True):
                total[-1] += part
        dG[:, -1] += dw
        dg[:, -1, 0] += dgC
        # The averaged gradient step on W2: Y = c r delta with delta = back * slope and r = 1 / sqrt(1 + |delta|^2).
        along = (dY * delta).sum(-1, keepdim=True).mul_(r)
        dc = along.sum(0)
        dback = torch.addcmul(dY, delta, along * r, value=-1).mul_(r * c)
        dz = (dback * back).mul_(_gelu_curvature(z))
        dback.mul_(slope)
        square = c / eta.clamp_min(torch.finfo(c.dtype).tiny)
        deta = dc * square.square() * -ctx.chunk_size
        dk_step = dc * (c * c) * (2 * ctx.chunk_size) * k
        # The proximal step on W1: (I + f Gp gram) U = f rhs.
        gram = a @ a.mT
        rhs = torch.addcmul(error, fade, gp - 1).neg_()
        lower = (gram * Gp).mul_(f)
        dR = torch.linalg.solve_triangular(lower, dU.mT, upper=False, left=False, unitriangular=True).mT.contiguous()
        dgram = (dR @ U.mT).neg_().mul_(Gp)
        df = (dR * rhs).sum(-1, keepdim=True) + (dgram * gram).sum(-1, keepdim=True)
        dR.mul_(f)
        dgram.mul_(f)
        dratio = (dgram * gram).sum(0)
        dg[:, :-1] -= (dR * fade).sum(-1, keepdim=True).sum(0)[:, 1:]
        dfade = (1 - gp) * dR
        square = f / eta.clamp_min(torch.finfo(f.dtype).tiny)
        deta += (df * square.square()).sum(0)
        # Back to the features, the weights and the key.
        derror = torch.matmul(dback, W1.mT).sub_(dR)
        da.add_(dgram @ a).add_(dgram.mT @ a).addcmul_(a, df.mul_(f).mul_(f), value=-2)
        da.add_(derror @ W1).add_(dfade @ D1)
        dW1 = (error.mT @ dback).add_(derror.mT @ a)
        dD1.add_(dfade.mT @ a)
        dz.add_(_gelu_grad(da, z))
        dW2 = dz.mT @ k
        dk.add_(derror).add_(dz @ W2)
        dk = dk.sum(0).add_(dk_step)
        if read_W is not None:
            dW1[-1] += read_W[0]
            dW2[-1] += read_W[1]
        # Retention acts through the running sum of its logarithms.
        flow = dG.mul_(G)
        flow[:, :-1] += dratio[:, 1:]
        dtotal = flow.sum(-1) - flow.sum(-2) + (dg * g).squeeze(-1)
        dlog = dtotal.flip(-1).cumsum(-1).flip(-1)
        return dW1, dW2, dD1, dD2, dk, derror.neg_(), deta.squeeze(-1), dlog, dq, None


def _gelu_curvature(z: Tensor) -> Tensor:
    """Second derivative of GELU: the normal density times `2 - z^2`."""
    square = z * z
    density = (square * -0.5).exp_()
    return density.mul_(square.sub_(2)).mul_(-1 / math.sqrt(2 * math.pi))


def _mean_step(eta: Tensor, k: Tensor, chunk_size: int) -> Tensor:
    """Minus the step of the averaged gradient rule, `eta / (1 + eta |k|^2) / C`."""
    return eta / (1 + eta * k.square().sum(-1, keepdim=True)) * (-1 / chunk_size)


def _bound(delta: Tensor) -> Tensor:
    """What makes every row of `delta` shorter than 1."""
    return delta.square().sum(-1, keepdim=True).add_(1).rsqrt_()


def _decays(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """`g (N, C, 1)` and `G (N, C, C)`, see memory/chunk.py."""
    g, G = chunk.decays(log_alpha)
    return g.unsqueeze(-1), G


def _before(g: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Both one token earlier; row 0 is the state at the chunk's start."""
    return F.pad(g[:, :-1], (0, 0, 1, 0), value=1.0), F.pad(G[:, :-1], (0, 0, 1, 0))


def _causal_read(q, k, W1, W2, D1, D2, g, G, a, U, Y):
    """`M_t(q_t)` for every token of the chunk, for one memory `(N, ...)`, and what its derivative needs."""
    past2, scores2 = q @ D2.mT, q @ k.mT
    zq = torch.addcmul(q @ W2.mT, g - 1, past2).baddbmm_(scores2 * G, Y)
    aq = F.gelu(zq)
    past1, scores1 = aq @ D1.mT, aq @ a.mT
    y = torch.addcmul(q + aq @ W1.mT, g - 1, past1).baddbmm_(scores1 * G, U)
    return y, zq, aq, scores2, scores1, past2, past1


def _causal_read_backward(dy, q, zq, aq, scores2, scores1, past2, past1, k, W1, W2, D1, D2, g, G, a, U, Y):
    """Gradients of `_causal_read`: query, key, `(W1, W2)`, `(D1, D2, a, U, Y)`, and the decays `g` and `G`."""
    dg = (dy * past1).sum(-1, keepdim=True)
    lost = dy * (g - 1)
    mix = dy @ U.mT
    dG = mix * scores1
    mix.mul_(G)
    daq = torch.matmul(dy, W1).add_(lost @ D1).baddbmm_(mix, a)
    dU, da = (scores1 * G).mT @ dy, mix.mT @ aq
    dW1, dD1 = dy.mT @ aq, lost.mT @ aq
    dzq = _gelu_grad(daq, zq)
    dg += (dzq * past2).sum(-1, keepdim=True)
    lost = dzq * (g - 1)
    mix = dzq @ Y.mT
    dG.addcmul_(mix, scores2)
    mix.mul_(G)
    dq = torch.matmul(dzq, W2).add_(lost @ D2).add_(dy).baddbmm_(mix, k)
    dY, dk = (scores2 * G).mT @ dzq, mix.mT @ q
    dW2, dD2 = dzq.mT @ q, lost.mT @ q
    return dq, dk, (dW1, dW2), (dD1, dD2, da, dU, dY), dg, dG


def fits(memory: Memory) -> bool:
    """Whether `mlp_advance` computes this memory: see the module."""
    mean_step = GD(step="implicit", scale=1 / memory.chunk_size, bounded=True)
    return (
        memory.structure == ResidualMLP()
        and memory.objective == L2()
        and memory.layer_rules == (DGD(), mean_step)
        and memory.retention == Decay("initial")
        and memory.momentum is None
        and memory.read == "causal"
        and memory.feature == Identity()
    )


def mlp_advance(memory: Memory, piece: Piece) -> Advanced:
    """The twin of `memory.stack.advance`.

    A piece that begins inside a chunk (a sequence fed in pieces) goes to `advance` itself: in the midst of a chunk the
    state is not the one that gradients are taken at, and the closed form above needs them to be one.
    """
    if not piece.fresh:
        return advance(memory, piece)
    rows = piece.k, piece.target, piece.eta, piece.log_alpha, piece.q
    y, D1, D2 = _Chunk.apply(*piece.weights, *piece.current, *rows, memory.chunk_size)  # pyright: ignore[reportGeneralTypeIssues]
    return y, (D1, D2), ()


FUSED = Kernel(mlp_advance, mlp_read, mlp_unit)
"""The twins of `memory.stack.ALGEBRA` for memories that `fits`."""
