"""Momentum and preconditioners as memories of gradients: Sec. 3.1, 4.2, 4.3."""

import pytest
import torch
from torch import Tensor

from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2, DotProduct
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.structure import Matrix
from paper.solve import argmin, close, differ, distance, proximal, proximal_map

ETA = 0.1


def layer_steps(beta: float, steps: int = 6):
    """A linear layer trained row by row by torch's momentum: input, output gradient, weight after, momentum after.

    The momentum is the paper's, which holds the step size: `m_t = beta m_{t-1} + eta delta x^T`.
    """
    w = torch.randn(3, 4, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=ETA, momentum=beta)
    for x, y in zip(torch.randn(steps, 4), torch.randn(steps, 3), strict=True):
        optimizer.zero_grad()
        out = w @ x
        loss = (out - y).square().sum().add(1).log()
        (delta,) = torch.autograd.grad(loss, out, retain_graph=True)
        loss.backward()
        optimizer.step()
        yield x, delta, w.detach().clone(), ETA * optimizer.state[w]["momentum_buffer"]


@pytest.mark.paper("Eq. 10-13, 34")
@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_momentum_is_two_nested_problems(beta: float) -> None:
    """Each m_t minimizes `-<m, grad> + |m - beta m_{t-1}|^2 / (2 eta)`, and W moves by it (Eq. 12-13 for beta = 1).

    As a memory of inputs: `-<m x, delta>` instead of `-<m, grad>`. Where beta is not 1, the inner level takes a step of
    gradient descent on `-<m x, delta> + (1 - beta) / (2 eta) |m|^2`.
    """
    before, weight = torch.zeros(3, 4), None
    for x, delta, w, m in layer_steps(beta):
        close(m, proximal(-torch.outer(delta, x), beta * before, ETA))
        close(m, proximal_map(x, -delta, beta * before, ETA))
        old = before.clone().requires_grad_()
        inner = (1 - beta) / (2 * ETA) * old.square().sum() - (old @ x * delta).sum()
        close(m, before - ETA * torch.autograd.grad(inner, old)[0])
        if weight is not None:
            close(w, weight - m)
        before, weight = m.clone(), w


@pytest.mark.paper("Eq. 33-35, 37, 100")
@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_momentum_is_linear_attention_over_inputs_and_surprises(beta: float) -> None:
    """The momentum of a layer is the library's Hebbian memory with the inputs as keys and `-delta` as values.

    Step and retention of that memory are the optimizer's rate and decay; the weights add its states up (Eq. 35).
    """
    x, delta, weights, momenta = (torch.stack(rows) for rows in zip(*layer_steps(beta), strict=True))
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=4)
    state = memory.init_state((torch.zeros(3, 4),))
    rates = torch.full((1,), ETA), torch.full((1,), beta)
    for t, (w, m) in enumerate(zip(weights, momenta, strict=True)):
        now = slice(t, t + 1)
        state = chunked(memory, state, x[now], x[now], -delta[now], *rates)[1]
        close(state.current[0], -m)
        if t:
            close(w, weights[t - 1] + state.current[0])


@pytest.mark.paper("Sec. 4.3, counts")
def test_what_momentum_remembers() -> None:
    """At beta = 0.9 the last 6 gradients hold 46.9% of a momentum and 7 hold 52.2%; 43 hold 98.9% and 44 hold 99.03%.

    So half of it takes 7 and 99% takes 44, one more each than the paper counts. Gradients are unit vectors, each its
    own coordinate, so that the buffer of the optimizer shows the share of every one.
    """
    steps = 600
    w = torch.zeros(steps, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    for t in range(steps):
        w.grad = torch.eye(steps)[t]
        optimizer.step()
    held = optimizer.state[w]["momentum_buffer"].flip(0).cumsum(0)
    shares = {n: round(100 * float(held[n - 1] / held[-1]), 2) for n in (6, 7, 43, 44)}
    assert shares == {6: 46.86, 7: 52.17, 43: 98.92, 44: 99.03}


def forgetting(beta: float, per_task: int) -> tuple[Tensor, Tensor]:
    """Loss of the first task when the second starts and when it ends; the tasks' inputs are orthogonal (Eq. 45)."""
    directions = torch.linalg.qr(torch.randn(5, 2)).Q.mT
    w, targets = torch.zeros(5, requires_grad=True), (1.0, -2.0)
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=beta)
    losses = []
    for direction, target in zip(directions, targets, strict=True):
        for _ in range(per_task):
            optimizer.zero_grad()
            (w @ direction - target).square().backward()
            assert w.grad is not None
            close(w.grad, (w.grad @ direction) * direction)
            optimizer.step()
        losses.append((w.detach() @ directions[0] - targets[0]).square())
    return losses[0], losses[1]


@pytest.mark.paper("Eq. 45")
def test_orthogonal_tasks_meet_in_the_momentum_only() -> None:
    """Each task's gradients stay in its own direction, so gradient descent on one leaves the other's loss as it is.

    Momentum carries the last task's gradients on into the next one, and changes what was learned.
    """
    before, after = forgetting(0.0, 7)
    close(before, after)
    before, after = forgetting(0.9, 7)
    assert (after - before).abs() > 0.1 * before


@pytest.mark.paper("Eq. 38")
def test_adagrad_is_a_preconditioned_step() -> None:
    """`W - eta P^-1 g` with P the diagonal of the root of summed squares is AdaGrad."""
    w = torch.randn(5, requires_grad=True)
    optimizer = torch.optim.Adagrad([w], lr=ETA, eps=0.0)
    squares, expected = torch.zeros(5), w.detach().clone()
    for g in torch.randn(6, 5):
        w.grad = g
        optimizer.step()
        squares += g.square()
        expected = expected - ETA * torch.linalg.solve(squares.sqrt().diag(), g)
        close(w.detach(), expected)


@pytest.mark.paper("Eq. 40-41")
def test_a_learned_preconditioner_is_a_delta_rule() -> None:
    """P learned by gradient descent on `1/2 |P g - g'|^2`, from P_t, is the library's matrix memory with L2 and GD.

    Over and over on the same pairs it comes to the minimum of their sum (Eq. 40).
    """
    g, wanted, start, zeta = torch.randn(12, 4), torch.randn(12, 4), torch.eye(4), 0.02
    memory = Memory(Matrix(), L2(), (GD(),), chunk_size=1)
    state, rates = memory.init_state((start,)), (torch.full((12,), zeta), torch.ones(12))
    state = chunked(memory, state, g, g, wanted, *rates)[1]
    p = start.clone().requires_grad_()
    for key, value in zip(g, wanted, strict=True):
        p = p - zeta * torch.autograd.grad(distance(p @ key, value), p, create_graph=True)[0]
    close(memory.weights(state, state.current)[0], p.detach())
    best = argmin(lambda new: distance(g @ new.mT, wanted), start)
    whole = Memory(Matrix(), L2(), (GD(),), chunk_size=12)
    state = whole.init_state((start,))
    for _ in range(3000):
        state = chunked(whole, state, g, g, wanted, *rates)[1]
    close(whole.weights(state, state.current)[0], best, 1e-6)
    differ(start, best)
