"""Knowledge transfer between levels (Sec. 3.3): initialization, generation of weights and of context."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2, DotProduct
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.structure import Matrix, ResidualMLP, fixed, init
from paper.solve import argmin, close, differ, distance

D, HIDDEN, T = 4, 5, 6


@pytest.mark.paper("Eq. 28")
def test_the_gradient_of_a_start_goes_through_the_inner_steps() -> None:
    """MAML: the start of a memory gets the gradient of the loss after the inner step, second derivatives included.

    The library's MLP memory makes one inner step on a context and is read with queries; torch differentiates
    `L(W - eta grad l(W))`. The first-order gradient, at the adapted weights, is another one.
    """
    k, v, q, y = (torch.randn(T, D) for _ in range(4))
    memory, eta = Memory(ResidualMLP(), L2(), (GD(), GD()), chunk_size=T), 0.3
    start = [w.requires_grad_() for w in init(ResidualMLP(), D, D, HIDDEN)]

    def read(weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return ResidualMLP().forward(fixed(weights), x)

    state = memory.init_state(start)
    state = chunked(memory, state, k, k, v, torch.full((T,), eta), torch.ones(T))[1]
    loss = distance(read(memory.weights(state, state.current), q), y)
    inner = torch.autograd.grad(distance(read(tuple(start), k), v), start, create_graph=True)
    adapted = [w - eta * g for w, g in zip(start, inner, strict=True)]
    outer = distance(read(tuple(adapted), q), y)
    close(loss, outer)
    first_order = torch.autograd.grad(outer, adapted, retain_graph=True)
    pairs = zip(torch.autograd.grad(loss, start), torch.autograd.grad(outer, start), first_order, strict=True)
    for through, expected, shortcut in pairs:
        close(through, expected)
        differ(through, shortcut)


@pytest.mark.paper("Eq. 28")
def test_the_gradient_of_a_start_token_by_token() -> None:
    """For a matrix memory it is `G prod_t (I - eta k_t k_t^T)`, from the last step back to the first."""
    k, v, seed, eta = torch.randn(T, D), torch.randn(T, D), torch.randn(D, D), 0.1
    memory, start = Memory(Matrix(), L2(), (GD(),), chunk_size=1), torch.randn(D, D, requires_grad=True)
    state = chunked(memory, memory.init_state((start,)), k, k, v, torch.full((T,), eta), torch.ones(T))[1]
    got = torch.autograd.grad((memory.weights(state, state.current)[0] * seed).sum(), start)[0]
    expected = seed
    for key in k.flip(0):
        expected = expected @ (torch.eye(D) - eta * torch.outer(key, key))
    close(got, expected)


@pytest.mark.paper("Eq. 28")
def test_the_best_start_lies_amid_the_tasks() -> None:
    """Tasks are matrices A_i, seen at orthonormal keys: after one step of eta < 1 the loss is least from their mean."""
    tasks, keys, eta = torch.randn(5, D, D), torch.linalg.qr(torch.randn(D, D)).Q, 0.4
    memory = Memory(Matrix(), L2(), (GD(),), chunk_size=D)
    rates = torch.full((D,), eta), torch.ones(D)

    def loss(start: Tensor) -> Tensor:
        state = memory.init_state((start.expand(5, D, D),))
        state = chunked(memory, state, keys.expand(5, D, D), keys.expand(5, D, D), keys @ tasks.mT, *rates)[1]
        return distance(memory.weights(state, state.current)[0], tasks)

    best = argmin(loss, torch.zeros(D, D))
    close(best, tasks.mean(0))
    close(loss(best), (1 - eta) ** 2 * distance(best.expand_as(tasks), tasks))
    assert loss(best) < loss(torch.zeros(D, D))


@pytest.mark.paper("Sec. 3.3, generation")
def test_a_hypernetwork_learns_through_the_weights_it_generates() -> None:
    """Weights `Theta = H z` give H the gradient `dL/dTheta z^T`; its step moves Theta by `-eta |z|^2 dL/dTheta`."""
    target = nn.Sequential(nn.Linear(3, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2))
    shapes = {name: w.shape for name, w in target.named_parameters()}
    sizes, z, eta = [shape.numel() for shape in shapes.values()], torch.randn(7), 0.01
    generator = nn.Linear(7, sum(sizes), bias=False)
    x, y = torch.randn(T, 3), torch.randn(T, 2)

    def loss(theta: Tensor) -> Tensor:
        parts = {name: p.view(shapes[name]) for name, p in zip(shapes, theta.split(sizes), strict=True)}
        return distance(functional_call(target, parts, x), y)

    theta = generator(z)
    slope = torch.autograd.grad(loss(theta), theta, retain_graph=True)[0]
    optimizer = torch.optim.SGD(generator.parameters(), lr=eta)
    loss(theta).backward()
    close(generator.weight.grad, torch.outer(slope, z))
    assert all(w.grad is None for w in target.parameters())
    optimizer.step()
    close(generator(z), theta - eta * z.square().sum() * slope)
    assert loss(generator(z)) < loss(theta)


def unrolled(rate: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A linear layer trained by a momentum that is a memory of the library; its step and retention are `rate`, `beta`.

    The layer generates the memory's context, its inputs and minus its output gradients; the memory's state moves it.
    """
    w = torch.zeros(y.shape[-1], x.shape[-1])
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=1)
    state = memory.init_state((torch.zeros_like(w),))
    for row, target in zip(x.split(1), y.split(1), strict=True):
        surprise = row @ w.mT - target
        state = chunked(memory, state, row, row, -surprise, rate.view(1), beta.view(1))[1]
        w = w + state.current[0]
    return w


@pytest.mark.paper("Sec. 3.3, generation")
def test_a_learned_optimizer_is_one_whose_rates_get_gradients() -> None:
    """With fixed rates it is torch's momentum; and the loss after training has exact gradients in the rates.

    They equal central differences through the whole training, and following them trains better.
    """
    x, y = torch.randn(T, D), torch.randn(T, 3)
    rate, beta = (torch.tensor(value, requires_grad=True) for value in (0.05, 0.8))
    layer = nn.Linear(D, 3, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.8)
    for row, target in zip(x, y, strict=True):
        optimizer.zero_grad()
        distance(layer(row), target).backward()
        optimizer.step()
    close(unrolled(rate, beta, x, y), layer.weight)

    def final(rate: Tensor, beta: Tensor) -> Tensor:
        return distance(x @ unrolled(rate, beta, x, y).mT, y)

    assert torch.autograd.gradcheck(final, (rate, beta))
    slopes = torch.autograd.grad(final(rate, beta), (rate, beta))
    with torch.no_grad():
        better = [p - 1e-4 * slope for p, slope in zip((rate, beta), slopes, strict=True)]
        assert final(better[0], better[1]) < final(rate, beta)


@pytest.mark.paper("Sec. 3.3, generation")
def test_one_step_of_a_learned_rate() -> None:
    """After one step `W - rate g`, the loss's slope in the rate is minus the old gradient times the new one."""
    x, y, rate = torch.randn(1, D), torch.randn(1, 3), torch.tensor(0.1, requires_grad=True)
    w = unrolled(rate, torch.tensor(0.8), x, y)
    slope = torch.autograd.grad(distance(x @ w.mT, y), rate)[0]
    old, new = ((x @ weight.mT - y).mT @ x for weight in (torch.zeros(3, D), w.detach()))
    close(slope, -(old * new).sum())
