"""Fused twins of the residual MLP memory (Eq. 89-90), with backward passes written by hand.

They compute what the memory algebra computes for `M(x) = x + W1 gelu(W2 x)` with the L2 objective, the direct DGD step
on `W1`, the averaged gradient step on `W2`, retention towards an anchor, causal reads and no momentum. No second
derivatives.

Shapes: `M` memories, `N` batch times heads, `C` tokens of the chunk, `d` key width, `h` hidden width. Inside, rows are
columns, `(N, M, d, C)`, and weights `W1 (N, M, d, h)`, `W2 (N, M, h, d)`: what all memories share then meets all of
them in one product, `(N, M h, d) @ (N, d, C)`, and a token's scalars run along the last axis. Callers see the shapes
of memory/stack.py, `(M, N, ...)` and `(N, C, d)`, as views of these.

One chunk, with `g`, `G` as in memory/chunk.py, `Gp[s,t] = G` one token earlier and 1 at `s = t`:

    z = W2 k              a = gelu(z)            err = target - k - W1 a          fade = D1 a
    V (I + eta_s Gp[s,t] <a_s, a_t>) = err + (1 - g_{t-1}) fade                   rows written to W1: eta V
    delta = (W1^T err) gelu'(z)          Y = delta / sqrt(1 + |delta|^2)          rows written to W2: step Y

The retentions' gradient needs no derivative of `G`: `log alpha` moves the running sum of logarithms, which scales what
decays as a whole, so the products of states with their gradients are enough.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nestling.kernels.mlp_read import (
    gelu_grad,
    inner,
    mlp_project,
    mlp_read,
    mlp_target,
    mlp_unit,
    scale,
    scale_backward,
)
from nestling.memory.dgd import DGD
from nestling.memory.feature import Identity
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2
from nestling.memory.retention import Decay
from nestling.memory.stack import Advanced, Kernel, Piece, advance
from nestling.memory.structure import ResidualMLP


class _Kept(NamedTuple):
    """What a chunk's backward pass keeps; rows `(N M, ., C)`. What is quickly computed again is not kept."""

    W1: Tensor
    W2: Tensor
    D1: Tensor
    D2: Tensor
    k: Tensor
    eta: Tensor
    step: Tensor
    log_alpha: Tensor
    z: Tensor
    a: Tensor
    error: Tensor
    corner: Tensor
    diagonal: Tensor
    inverses: Tensor
    V: Tensor
    back: Tensor
    bound: Tensor
    wk: Tensor
    D1_end: Tensor
    D2_end: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """`(N M, ., C)` as `(N, M, ., C)`."""
        return x.view(*self.W1.shape[:2], -1, x.shape[-1])

    def content(self, Y: Tensor) -> _One:
        """The last memory."""
        weights = (w[:, -1] for w in self[:4])
        return _One(*weights, *(self.rows(x)[:, -1] for x in (self.V, Y, self.a)))


class _Decays(NamedTuple):
    """Products of retentions: `g (N, C)` and the same one token earlier, `G[s,t] (N, C, C)` and `Gp`."""

    g: Tensor
    gp: Tensor
    G: Tensor
    Gp: Tensor

    @property
    def last(self) -> Tensor:
        """What is left at the chunk's end of what is written at `s`, `(N, C)`."""
        return self.G[:, :, -1].contiguous()

    def strengths(self, eta: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, C, C)`: what reads at `t` see of the rows `V` and `Y` written at `s`."""
        return self.G * eta.unsqueeze(2), self.G * step.unsqueeze(2)


class _One(NamedTuple):
    """One memory, `(N, ...)`."""

    W1: Tensor
    W2: Tensor
    D1: Tensor
    D2: Tensor
    V: Tensor
    Y: Tensor
    a: Tensor


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, W1, W2, D1, D2, k, target, eta, log_alpha, q, chunk_size):
        W1, W2, D1, D2 = (inner(w) for w in (W1, W2, D1, D2))
        k, q = k.mT.contiguous(), None if q is None else q.mT.contiguous()
        target = target.permute(1, 0, 3, 2).contiguous()
        N, M, d, C = target.shape
        w1, d1 = W1.flatten(0, 1), D1.flatten(0, 1)
        decays = _decays(log_alpha)
        step = eta / (1 + eta * k.square().sum(1)) / chunk_size
        # Features and error at the boundary.
        z = torch.bmm(W2.flatten(1, 2), k).view(N * M, -1, C)
        a, slope = F.gelu(z), gelu_grad(z.new_ones(()).expand_as(z), z)
        error = torch.sub(target, k.unsqueeze(1)).view(N * M, d, C).baddbmm_(w1, a, alpha=-1)
        fade = torch.bmm(d1, a)
        # The rows that the two rules write.
        strength = (decays.Gp * eta.unsqueeze(2)).unsqueeze(1)
        system = torch.bmm(a.mT, a).view(N, M, C, C).mul_(strength).view(N * M, C, C)
        diagonal = system.diagonal(0, 1, 2).add_(1)
        rhs = torch.addcmul(error.view(N, M, d, C), fade.view(N, M, d, C), (1 - decays.gp)[:, None, None])
        inverses, corner = _inverses(system)
        V = _solve(corner, inverses, rhs.view(N * M, d, C))
        back = torch.bmm(w1.mT, error)
        delta = back * slope
        bound = scale(delta, 1.0)
        Y = delta.mul_(bound)
        # States at the chunk's end.
        last, gC = decays.last, decays.g[:, -1].view(N, 1, 1, 1)
        wa = (a.view(N, M, -1, C) * (last * eta)[:, None, None]).view_as(a)
        wk = k * (last * step).unsqueeze(1)
        D1_end = (D1 * gC).flatten(0, 1).baddbmm_(V, wa.mT).view_as(D1).transpose(0, 1)
        D2_end = (D2 * gC).flatten(1, 2).baddbmm_(Y.view(N, -1, C), wk.mT).view_as(D2).transpose(0, 1)
        kept = _Kept(W1, W2, D1, D2, k, eta, step, log_alpha, z, a, error, corner, diagonal.contiguous(), inverses, V,
                     back, bound, wk, D1_end, D2_end)  # fmt: skip
        y, read = None, ()
        if q is not None:
            y, *read = _causal_read(kept.content(Y), q, k, decays.g, *decays.strengths(eta, step))
            y = y.mT
        ctx.save_for_backward(*kept, q, *read)
        ctx.chunk_size = chunk_size
        return y, D1_end, D2_end

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dD1_end, dD2_end):
        saved = ctx.saved_tensors  # once: under activation checkpointing a second look is an error
        s, (q, *read) = _Kept(*saved[: len(_Kept._fields)]), saved[len(_Kept._fields) :]
        decays, slope = _decays(s.log_alpha), gelu_grad(s.z.new_ones(()).expand_as(s.z), s.z)
        Y = (s.back * slope).mul_(s.bound)
        parts, dk, flow, own = _end_backward(s, decays, Y, dD1_end, dD2_end)
        dq, read_W = None, ()
        if q is not None:
            given = q, s.k, decays.g, *decays.strengths(s.eta, s.step), *read
            dq, dk_read, read_W, read_parts, read_flow, read_own = _causal_read_backward(
                dy.mT.contiguous(), s.content(Y), *given
            )
            for total, part in zip(parts, read_parts, strict=True):
                total[:, -1] += part
            dk, flow, own, dq = dk.add_(dk_read), flow.add_(read_flow), own.add_(read_own), dq.mT
        dD1, dD2, da, dV, dY = parts
        dV, dY = dV.flatten(0, 1), dY.flatten(0, 1)
        *weights, dtarget, dk_rules, deta, solved, entered = _rules_backward(
            s, decays, slope, dY, dV, da.flatten(0, 1), Y, dD1
        )
        for total, part in zip(weights, read_W, strict=False):
            total[:, -1] += part
        # The step of W2, eta / (1 + eta |k|^2) / C.
        relative = own * s.step
        deta.addcdiv_(relative, s.eta.square().clamp_min(torch.finfo(s.eta.dtype).tiny), value=ctx.chunk_size)
        dk = dk.add_(dk_rules).addcmul_(relative.unsqueeze(1), s.k, value=-2 * ctx.chunk_size)
        # What is written at s decays from s on; what has decayed up to t-1 enters the step at t.
        flow.sub_(own).sub_(solved)
        flow[:, :-1] += entered[:, 1:]
        dlog = flow.flip(-1).cumsum(-1).flip(-1)
        return *(dw.transpose(0, 1) for dw in (*weights, dD1, dD2)), dk.mT, dtarget, deta, dlog, dq, None


def _end_backward(
    s: _Kept, decays: _Decays, Y: Tensor, dD1_end: Tensor, dD2_end: Tensor
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """From the states at the chunk's end: gradients of `D1, D2, a, V, Y` and `k`, what decays, what Y's rows write."""
    flow = torch.zeros_like(s.eta)
    flow[:, -1] = (dD1_end * s.D1_end).sum((0, 2, 3)).add_((dD2_end * s.D2_end).sum((0, 2, 3)))
    dD1_end, dD2_end = inner(dD1_end), inner(dD2_end)
    e1, e2, gC = dD1_end.flatten(0, 1), dD2_end.flatten(1, 2), decays.g[:, -1].view(-1, 1, 1, 1)
    strength = (decays.last * s.eta)[:, None, None]
    da = s.rows(torch.bmm(e1.mT, s.V)).mul_(strength)
    dV = s.rows(torch.bmm(e1, (s.rows(s.a) * strength).view_as(s.a)))
    dY = s.rows(torch.bmm(e2, s.wk).view_as(Y))
    dwk = torch.bmm(e2.mT, Y.view(len(e2), -1, Y.shape[-1]))
    dk = dwk * (decays.last * s.step).unsqueeze(1)
    return [dD1_end * gC, dD2_end * gC, da, dV, dY], dk, flow, (dwk * s.wk).sum(1)


def _rules_backward(
    s: _Kept, decays: _Decays, slope: Tensor, dY: Tensor, dV: Tensor, da: Tensor, Y: Tensor, dD1: Tensor
) -> tuple[Tensor, ...]:
    """From the rows that were written to `W1`, `W2`, target, `k` and `eta`; adds to `dD1`, uses up `da` and `dY`.

    The last two results are products of gradients and states, summed to `(N, C)`: of the rows V with themselves, and
    what of it entered the step with the states before it.
    """
    (N, M, _, h), C = s.W1.shape, s.k.shape[-1]
    w1, d1 = s.W1.flatten(0, 1), s.D1.flatten(0, 1)
    # The averaged step on W2; `curved` lacks the second derivative of GELU.
    dY = scale_backward(dY, Y, s.bound)
    curved = dY * s.back
    dback = dY.mul_(slope)
    # The proximal step on W1: V @ system = rhs.
    dR = _solve_transposed(s.corner, s.inverses, dV)
    overlap = torch.bmm(s.V.mT, dR)
    same = overlap.diagonal(0, 1, 2)
    solved = (same * s.diagonal).view(N, M, C).sum(1)
    deta = same.view(N, M, C).sum(1).div_(s.eta.clamp_min(torch.finfo(s.eta.dtype).tiny))
    entered = solved - s.rows(torch.baddbmm(s.error, d1, s.a).mul_(dR)).sum((1, 2))
    overlap.view(N, M, C, C).mul_((decays.Gp * s.eta.neg().unsqueeze(2)).unsqueeze(1))
    dfade = (s.rows(dR) * (1 - decays.gp)[:, None, None]).view_as(dR)
    # Back to the features, the weights and the key.
    dW1 = torch.bmm(s.error, dback.mT)
    derror = dR.baddbmm_(w1, dback)
    da.baddbmm_(s.a, overlap).baddbmm_(s.a, overlap.mT)
    da.baddbmm_(d1.mT, dfade).baddbmm_(w1.mT, derror, alpha=-1)
    dW1.baddbmm_(derror, s.a.mT, alpha=-1)
    dD1.flatten(0, 1).baddbmm_(dfade, s.a.mT)
    dz = torch.addcmul(da.mul_(slope), curved, _gelu_curvature(s.z), value=math.sqrt(2 / math.pi)).view(N, M * h, C)
    dW2 = torch.bmm(dz, s.k.mT)
    dk = torch.bmm(s.W2.flatten(1, 2).mT, dz).sub_(s.rows(derror).sum(1))
    return dW1.view_as(s.W1), dW2.view_as(s.W2), s.rows(derror).permute(1, 0, 3, 2), dk, deta, solved, entered


def _inverses(system: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of the two diagonal blocks of upper triangular matrices, and the block above the second.

    An odd size fills the second up with 1. With these both passes solve by products, which are several times quicker
    here than the backend's triangular solves.
    """
    size = system.shape[-1]
    half = (size + 1) // 2
    blocks = system.new_zeros(len(system), 2, half, half)
    blocks[:, 1, -1, -1] = 1
    blocks[:, 0] = system[:, :half, :half]
    blocks[:, 1, : size - half, : size - half] = system[:, half:, half:]
    one = torch.eye(half, dtype=system.dtype, device=system.device)
    inverses = torch.linalg.solve_triangular(blocks.flatten(0, 1), one, upper=True, left=False).view_as(blocks)
    return inverses, system[:, :half, half:].contiguous()


def _solve(corner: Tensor, inverses: Tensor, rhs: Tensor) -> Tensor:
    """`X @ system = rhs` for upper triangular systems, by what `_inverses` returned."""
    half, rest = corner.shape[1:]
    left = torch.bmm(rhs[..., :half], inverses[:, 0])
    right = torch.baddbmm(rhs[..., half:], left, corner, alpha=-1)
    return torch.cat((left, torch.bmm(right, inverses[:, 1, :rest, :rest])), -1)


def _solve_transposed(corner: Tensor, inverses: Tensor, rhs: Tensor) -> Tensor:
    """`X @ system.mT = rhs` for upper triangular systems."""
    half, rest = corner.shape[1:]
    right = torch.bmm(rhs[..., half:], inverses[:, 1, :rest, :rest].mT)
    left = torch.baddbmm(rhs[..., :half], right, corner.mT, alpha=-1)
    return torch.cat((torch.bmm(left, inverses[:, 0].mT), right), -1)


def _gelu_curvature(z: Tensor) -> Tensor:
    """Second derivative of GELU over `sqrt(2 / pi)`: `exp(-z^2 / 2) (1 - z^2 / 2)`."""
    power = torch.addcmul(z.new_zeros(()), z, z, value=-0.5 / math.log(2))
    density = power.exp2()  # much quicker than exp
    return density.addcmul_(density, power, value=math.log(2))


def _decays(log_alpha: Tensor) -> _Decays:
    total = log_alpha.cumsum(-1).mul_(1 / math.log(2))  # exp2 is much quicker than exp
    g, G = total.exp2(), (total.unsqueeze(1) - total.unsqueeze(2)).exp2_().triu_()
    Gp = F.pad(G[:, :, :-1], (1, 0))
    Gp.diagonal(0, 1, 2).fill_(1)
    return _Decays(g, F.pad(g[:, :-1], (1, 0), value=1.0), G, Gp)


def _causal_read(m: _One, q: Tensor, k: Tensor, g: Tensor, Gv: Tensor, Gy: Tensor) -> tuple[Tensor, ...]:
    """`M_t(q_t) (N, d, C)` for every token of the chunk, and what its derivative needs.

    `Gv`, `Gy`: decays times the strengths of the rows `V` and `Y`.
    """
    fading = g.unsqueeze(1)
    mix2 = torch.bmm(k.mT, q).mul_(Gy)
    decaying2 = torch.bmm(m.D2, q).mul_(fading).baddbmm_(m.Y, mix2)
    z = torch.baddbmm(decaying2, m.W2 - m.D2, q)
    a = F.gelu(z)
    mix1 = torch.bmm(m.a.mT, a).mul_(Gv)
    decaying1 = torch.bmm(m.D1, a).mul_(fading).baddbmm_(m.V, mix1)
    y = torch.baddbmm(decaying1, m.W1 - m.D1, a).add_(q)
    return y, z, a, mix2, mix1, decaying2, decaying1


def _causal_read_backward(dy, m: _One, q, k, g, Gv, Gy, z, a, mix2, mix1, decaying2, decaying1):
    """Gradients of `_causal_read`: query, key, `(W1, W2)`, `(D1, D2, a, V, Y)`, what decays, and what Y's rows write.

    The last two are products of a gradient and a state, summed to `(N, C)`.
    """
    lost = (g - 1).unsqueeze(1)
    lost1, mix = dy * lost, torch.bmm(m.V.mT, dy).mul_(Gv)
    dV, da_k = torch.bmm(dy, mix1.mT), torch.bmm(a, mix.mT)
    da = torch.bmm(m.W1.mT, dy).baddbmm_(m.D1.mT, lost1).baddbmm_(m.a, mix)
    dW1, dD1 = torch.bmm(dy, a.mT), torch.bmm(lost1, a.mT)
    dz = gelu_grad(da, z)
    lost2, mix = dz * lost, torch.bmm(m.Y.mT, dz)
    written = (mix * mix2).sum(2)
    mix.mul_(Gy)
    dY, dk = torch.bmm(dz, mix2.mT), torch.bmm(q, mix.mT)
    dq = torch.baddbmm(dy, m.W2.mT, dz).baddbmm_(m.D2.mT, lost2).baddbmm_(k, mix)
    dW2, dD2 = torch.bmm(dz, q.mT), torch.bmm(lost2, q.mT)
    flow = decaying1.mul(dy).sum(1).add_((decaying2 * dz).sum(1))
    return dq, dk, (dW1, dW2), (dD1, dD2, da_k, dV, dY), flow, written


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


FUSED = Kernel(mlp_advance, mlp_read, mlp_project, mlp_target, mlp_unit)
"""The twins of `memory.stack.ALGEBRA` for memories that `fits`."""
