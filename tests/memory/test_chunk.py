"""The chunk algebra by itself: several rows a token, padding, broadcasting, extreme decays and steps."""

import itertools

import pytest
import torch
from torch import Tensor

from memory.tables import close
from nestling.memory import chunk, diagonal

C, D, OUT, N = 5, 4, 3, 2


def loop(
    A: Tensor, W: Tensor, x: Tensor, y: Tensor, p: Tensor, r: Tensor, alpha: Tensor, beta: Tensor, S: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """All states `(C + 1, ...)` and the last momentum; `alpha (..., C, 1 or d)`."""
    states = [W]
    for t in range(alpha.shape[-2]):
        now = slice(t * rank, (t + 1) * rank)
        gate = alpha[..., t, None, :]
        S = beta[..., t, None, None] * S + y[..., now, :].mT @ x[..., now, :]
        W = W * gate - W @ p[..., now, :].mT @ r[..., now, :] + (1 - gate) * A + S
        states.append(W)
    return torch.stack(states), S


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize(("rank", "momentum", "erase", "anchor"), list(itertools.product((1, 3), *[(False, True)] * 3)))
def test_states_equal_the_recurrence(channel: bool, rank: int, momentum: bool, erase: bool, anchor: bool) -> None:
    x, y = torch.randn(N, C * rank, D), torch.randn(N, C * rank, OUT)
    xi = 0.3 * torch.rand(N, C * rank)
    alpha, beta = torch.rand(N, C, D if channel else 1), torch.rand(N, C)
    A, deviation, S = torch.randn(OUT, D), torch.randn(N, OUT, D), torch.randn(N, OUT, D)
    log_beta = beta.log() if momentum else None
    args = (A if anchor else None, deviation, x, y)
    start = S if momentum else None
    if channel:
        pair = (x, xi[..., None] * x) if erase else None
        states = diagonal.solve(*args, pair, alpha.log(), log_beta, start, rank=rank)
    else:
        states = chunk.solve(*args, xi if erase else None, alpha.log()[..., 0], log_beta, start, rank=rank)
    A, beta, S, xi = A * anchor, beta * momentum, S * momentum, xi * erase
    W, S = loop(A, A + deviation, x, y, x, xi[..., None] * x, alpha, beta, S, rank)
    q, p = torch.randn(N, C, D), torch.randn(N, C, OUT)
    close(states.read(q), torch.einsum("tnod,ntd->nto", W[1:], q))
    close(states.read(q, previous=True), torch.einsum("tnod,ntd->nto", W[:-1], q))
    close(states.read_transpose(p), torch.einsum("tnod,nto->ntd", W[1:], p))
    close(states.read_transpose(p, previous=True), torch.einsum("tnod,nto->ntd", W[:-1], p))
    last, last_momentum = states.last()
    close(last, W[-1] - A)
    if last_momentum is not None:
        close(last_momentum, S)
    assert (last_momentum is None) == (not momentum)


@pytest.mark.parametrize("momentum", [False, True])
def test_a_padded_token_changes_nothing(momentum: bool) -> None:
    x, y, xi = torch.randn(N, C, D), torch.randn(N, C, OUT), 0.3 * torch.rand(N, C)
    log_alpha, log_beta, S = -torch.rand(N, C), -torch.rand(N, C), torch.randn(N, OUT, D)
    args = (torch.randn(OUT, D), torch.randn(N, OUT, D))
    real = torch.tensor([True, True, False, True, False])

    def only(keep: Tensor) -> tuple[Tensor, Tensor | None]:
        rest = (log_beta[:, keep], S) if momentum else ()
        return chunk.solve(*args, x[:, keep], y[:, keep], xi[:, keep], log_alpha[:, keep], *rest).last()

    rest = (log_beta * real, S) if momentum else ()
    live = real.double() if momentum else None
    padded = chunk.solve(*args, x, y * real[:, None], xi * real, log_alpha * real, *rest, live=live).last()
    for a, b in zip(padded, only(real), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            close(a, b, 1e-12)


def test_none_means_zero() -> None:
    x, y, xi, log_alpha = torch.randn(N, C, D), torch.randn(N, C, OUT), torch.rand(N, C), -torch.rand(N, C)
    zero, log_beta, q = torch.zeros(N, OUT, D), -torch.rand(N, C), torch.randn(N, C, D)
    some = chunk.solve(zero, zero, x, y, xi, log_alpha, log_beta, zero)
    none = chunk.solve(None, None, x, y, xi, log_alpha, log_beta)
    close(none.read(q, previous=True), some.read(q, previous=True))
    for a, b in zip(none.last(), some.last(), strict=True):
        assert a is not None
        assert b is not None
        close(a, b)


def test_leading_dimensions_broadcast_and_memories_stack_along_the_value() -> None:
    """Three memories that share keys and rates: stacked in a leading dimension or side by side in o."""
    x, xi, log_alpha = torch.randn(N, C, D), torch.rand(N, C), -torch.rand(N, C)
    y, deviation, anchor = torch.randn(3, N, C, OUT), torch.randn(3, N, OUT, D), torch.randn(3, 1, OUT, D)
    q = torch.randn(N, C, D)
    led = chunk.solve(anchor, deviation, x, y, xi, log_alpha)

    def side(w: Tensor) -> Tensor:
        return w.expand(3, N, -1, D).movedim(0, 1).flatten(1, 2)

    wide = chunk.solve(side(anchor), side(deviation), x, torch.cat(list(y), -1), xi, log_alpha)
    close(torch.cat(list(led.read(q)), -1), wide.read(q))
    close(side(led.last()[0]), wide.last()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("beta", [None, 0.0, 1e-8, 1.0])
def test_extreme_decays_are_finite(dtype: torch.dtype, alpha: float, beta: float | None) -> None:
    """64 tokens of the strongest decay: products underflow, values and gradients stay finite and right."""
    size = 64
    x = torch.nn.functional.normalize(torch.randn(N, size, D, dtype=dtype), dim=-1).requires_grad_()
    y, xi = torch.randn(N, size, OUT, dtype=dtype, requires_grad=True), torch.full((N, size), 0.9, dtype=dtype)
    gate = torch.full((N, size), alpha, dtype=dtype, requires_grad=True)
    gates = [gate] if beta is None else [gate, torch.full((N, size), beta, dtype=dtype, requires_grad=True)]
    W, S = (torch.randn(N, OUT, D, dtype=dtype) for _ in range(2))
    rest = () if beta is None else (chunk.log_decay(gates[1]), S)
    scalar = chunk.solve(W, W, x, y, xi, chunk.log_decay(gate), *rest)
    channels = chunk.log_decay(gate)[..., None].expand(-1, -1, D)
    diag = diagonal.solve(W, W, x, y, (x, xi[..., None] * x), channels, *rest)
    W, S, x_, y_, xi, gate_, beta_ = (z.double() for z in (W, S, x, y, xi, gates[0][..., None], gates[-1]))
    on = beta is not None
    want, _ = loop(W, 2 * W, x_, y_, x_, xi[..., None] * x_, gate_, beta_ * on, S * on, 1)
    for states in (scalar, diag):
        end = states.last()[0]
        tolerance = 1e-9 if dtype is torch.float64 else 1e-3 * max(1.0, float(want[-1].detach().abs().max()))
        torch.testing.assert_close(end.double() + W, want[-1], rtol=0, atol=tolerance)
        grads = torch.autograd.grad((states.read(x) ** 2).sum() + end.sum(), [x, y, *gates], retain_graph=True)
        assert all(g.isfinite().all() for g in grads)


def test_log_decay() -> None:
    x = torch.tensor([0.0, 1e-8, 0.5, 1.0], requires_grad=True)
    log = chunk.log_decay(x)
    close(log.exp(), x, 1e-12)
    log.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_gradcheck() -> None:
    def run(W: Tensor, D0: Tensor, S: Tensor, x: Tensor, y: Tensor, xi: Tensor, a: Tensor, b: Tensor) -> Tensor:
        states = chunk.solve(W, D0, x, y, xi, a, b, S)
        last, momentum = states.last()
        assert momentum is not None
        return torch.cat([states.read(x).flatten(), states.read(x, True).flatten(), last.flatten(), momentum.flatten()])

    matrices = [torch.randn(2, 2) for _ in range(3)]
    rows = [torch.randn(3, 2), torch.randn(3, 2), torch.rand(3), -torch.rand(3), -torch.rand(3)]
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in (*matrices, *rows)])


def test_autocast_keeps_states_in_float32() -> None:
    W, x, y = (torch.randn(*s, dtype=torch.float32) for s in ((N, OUT, D), (N, C, D), (N, C, OUT)))
    xi, log_alpha = torch.rand(N, C, dtype=torch.float32), -torch.rand(N, C, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        states = chunk.solve(W, W, x, y, xi, log_alpha, log_alpha, W)
        read, ends = states.read(x), states.last()
    assert read.isfinite().all()
    assert all(end is not None and end.dtype is torch.float32 and end.isfinite().all() for end in ends)
