"""Richer memories of gradients: Sec. 4.4.

The paper's m holds negated gradients and is added to the weights; ours holds gradients and is subtracted.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestling.memory.feature import Power
from nestling.memory.objective import L2
from nestling.memory.structure import MLP, fixed
from nestling.optim import DeltaMomentum
from nestling.optim.associative import AssociativeMomentum
from paper.solve import close, differ, distance, proximal

OUT, IN, STEPS, ALPHA, ETA = 3, 4, 6, 0.9, 0.2


def gradients() -> Tensor:
    return 0.5 * torch.randn(STEPS, OUT, IN)


def added(optimizer_of: Callable[..., torch.optim.Optimizer], grads: Tensor) -> list[Tensor]:
    """What the optimizer adds to a weight at every step, given these gradients; with lr = 1 that is the paper's m."""
    w = torch.zeros(OUT, IN, requires_grad=True)
    optimizer, steps = optimizer_of([w], lr=1.0), []
    for grad in grads:
        before, w.grad = w.detach().clone(), grad.clone()
        optimizer.step()
        steps.append(w.detach() - before)
    return steps


def associative(**choices) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, lr: AssociativeMomentum(params, lr=lr, decay=ALPHA, inner_lr=ETA, **choices)


class Fixed:
    """A preconditioner that depends on no gradient."""

    def __init__(self) -> None:
        self.matrix = torch.randn(OUT, OUT)

    def init(self, grad: Tensor) -> Tensor:
        return grad.new_zeros(grad.shape[0], 0)

    def __call__(self, grad: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.matrix.expand(grad.shape[0], OUT, OUT), state


def inner_step(objective: Callable[[Tensor], Tensor], m: Tensor, eta: float = ETA) -> Tensor:
    """`alpha m - eta grad objective(m)`."""
    return ALPHA * m - eta * torch.autograd.functional.jacobian(objective, m)


@pytest.mark.paper("Eq. 35, 37, 46-47")
def test_preconditioned_momentum_maps_gradients_to_values() -> None:
    """m takes gradient steps on `<m g^T, P>`, the same as `<m, P g>`: `alpha m - eta P g`; P = I is momentum."""
    grads, value, m = gradients(), Fixed(), torch.zeros(OUT, IN)
    plain = added(associative(), grads)
    for g, step, momentum in zip(grads, added(associative(value=value), grads), plain, strict=True):
        close(proximal(value.matrix @ g, ALPHA * m, ETA), ALPHA * m - ETA * value.matrix @ g)
        m = inner_step(lambda m: (m @ g.mT * value.matrix).sum(), m)  # noqa: B023
        close(step, m)
        differ(step, momentum)
    sgd = added(lambda params, lr: torch.optim.SGD(params, lr=ETA, momentum=ALPHA), grads)
    for step, expected in zip(plain, sgd, strict=True):
        close(step, expected)


def delta(**choices) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, lr: DeltaMomentum(params, lr, ALPHA, output="identity", weight_decay=0.0, **choices)


@pytest.mark.paper("Eq. 48-49")
def test_delta_momentum_is_a_step_on_a_squared_error() -> None:
    """`m (alpha I - xi g^T g) - eta P g` is a step of xi on `1/2 |m g^T + (eta / xi) P|^2`; xi = eta shares the step.

    Descent needs the plus: the values are `-P`. With `|m g^T - P|^2`, as printed above Eq. 49, m would climb.
    """
    grads, value, xi = gradients(), Fixed(), 0.05
    found = {
        "shared": added(associative(objective=L2(), value=value), grads),
        "delta": added(delta(xi_max=xi, write="delta"), grads),
        "gradient": added(delta(xi_max=xi, write="gradient"), grads),
    }
    steps = {"shared": (ETA, value.matrix), "delta": (xi, torch.eye(OUT)), "gradient": (xi, torch.eye(OUT) / xi)}
    for name, (step, values) in steps.items():
        m = torch.zeros(OUT, IN)
        for g, got in zip(grads, found[name], strict=True):
            m = inner_step(lambda m: distance(m @ g.mT, -values), m, step)  # noqa: B023
            close(got, m)
    climbing = inner_step(lambda m: distance(m @ grads[0].mT, torch.eye(OUT)), torch.zeros(OUT, IN))
    assert (climbing * grads[0]).sum() > 0 > (found["delta"][0] * grads[0]).sum()


@pytest.mark.paper("Eq. 49")
@pytest.mark.parametrize("write", ["gradient", "delta"])
def test_the_bracket_without_a_step_size_explodes(write: str) -> None:
    """`alpha I - g^T g` expands as soon as `|g|^2 > 1 + alpha`; with the bounded step it never does."""
    g = torch.randn(OUT, IN)
    g = g * (1.5 * (1 + ALPHA)) ** 0.5 / torch.linalg.matrix_norm(g, 2)
    m = torch.zeros(OUT, IN)
    for _ in range(200):
        m = m @ (ALPHA * torch.eye(IN) - g.mT @ g) - ETA * g
    assert m.norm() > 1e20
    steps = added(delta(xi_max=1.0, write=write), g.expand(200, OUT, IN))
    assert max(step.norm() for step in steps) <= g.norm() / (1 - ALPHA)


@pytest.mark.paper("Eq. 50")
def test_deep_momentum_takes_inner_steps_on_a_network() -> None:
    """The network's weights follow `alpha m - eta grad` of an inner loss on the rows of the gradient, by autograd."""
    grads = gradients()
    w = torch.zeros(OUT, IN, requires_grad=True)
    optimizer = AssociativeMomentum([w], lr=1.0, decay=ALPHA, inner_lr=ETA, structure=MLP(), objective=L2())
    weights = [layer[0].clone() for layer in optimizer.memory.init(grads[:1])]
    for g in grads:
        before, w.grad = w.detach().clone(), g.clone()
        optimizer.step()
        leaves = [layer.clone().requires_grad_() for layer in weights]
        inner = distance(MLP().forward(fixed(leaves), g), torch.eye(OUT))
        slopes = torch.autograd.grad(inner, leaves)
        weights = [ALPHA * layer - ETA * slope for layer, slope in zip(weights, slopes, strict=True)]
        close(before - w.detach(), MLP().forward(fixed(weights), torch.eye(IN)).mT)


@pytest.mark.paper("Eq. 50")
def test_a_linear_deep_momentum_is_momentum_by_its_state() -> None:
    """With a linear m and the dot product the state is the momentum; `m(u)`, Eq. 50's letter, is something else."""
    grads = gradients()
    momentum = added(lambda params, lr: torch.optim.SGD(params, lr=ETA, momentum=ALPHA), grads)
    for step, expected in zip(added(associative(), grads), momentum, strict=True):
        close(step, expected)
    m = torch.zeros(IN, IN)
    for g, step in zip(grads, added(associative(read="gradient"), grads), strict=True):
        m = ALPHA * m + ETA * g.mT @ g
        close(step, -(g @ m.mT))
    differ(step, momentum[-1])


@pytest.mark.paper("Eq. 51")
def test_momentum_of_features() -> None:
    """`alpha m - eta P phi(g)`, phi the cube of every entry."""
    grads, value, m = gradients(), Fixed(), torch.zeros(OUT, IN)
    for g, step in zip(grads, added(associative(value=value, feature=Power(3.0)), grads), strict=True):
        m = ALPHA * m - ETA * value.matrix @ g**3
        close(step, m)
