"""Delta Gradient Descent: Sec. 4.5 and App. C, with the derivation put right."""

import pytest
import torch
from torch import Tensor, nn

from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2, DotProduct, Objective
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.rule import Rule
from nestling.memory.structure import Matrix
from nestling.optim import dgd
from nestling.optim.layerwise import layer_groups
from paper.solve import argmin, close, differ, distance

ETAS = [0.1, 1.0, 30.0]


@pytest.mark.paper("Eq. 56-57, 113-121")
@pytest.mark.parametrize("eta", ETAS)
def test_the_derivation(eta: float) -> None:
    """Every line of App. C, with `u = -grad` and `1 / eta` in front of the distance, for an input of any length.

    As printed, with the gradient itself and eta, it ends elsewhere: for eta = 1, where the factors agree, the step
    climbs along the gradient (Eq. 121).
    """
    w, x, u = torch.randn(3, 4), 2 * torch.randn(4), torch.randn(3)
    new = argmin(lambda m: distance(m @ x, u) + distance(m, w) / eta, w)
    outer, written, one = torch.outer(x, x), torch.outer(u, x), torch.eye(4)
    step = eta / (1 + eta * x @ x)
    close(torch.outer(new @ x - u, x) + (new - w) / eta, torch.zeros(3, 4))  # 114
    close(new @ (outer + one / eta), written + w / eta)  # 115
    inverse = torch.linalg.inv(outer + one / eta)
    close(new, (written + w / eta) @ inverse)  # 116
    close(inverse, eta * (one - step * outer))  # 117
    close(new, (written + w / eta) @ (eta * (one - step * outer)))  # 118
    close(new, w @ (one - step * outer) + eta * written - eta * step * (x @ x) * written)  # 119
    close(new, w @ (one - step * outer) + (eta - eta * step * (x @ x)) * written)  # 120
    close(new, w @ (one - step * outer) + step * written)  # 121, 57
    printed = (-written + eta * w) @ torch.linalg.inv(outer + eta * one)
    differ(printed, new)
    if eta == 1.0:
        close(printed, w @ (one - step * outer) - step * written)


@pytest.mark.paper("Eq. 56-57")
@pytest.mark.parametrize("eta", ETAS)
def test_the_memory_takes_that_step(eta: float) -> None:
    """u is minus the gradient at the output (Eq. 57's rule), or the value itself: both are their own minimum.

    The step size printed beside Eq. 57 is right for unit inputs only.
    """
    w, x, v = torch.randn(3, 4), 2 * torch.randn(4), torch.randn(3)
    for target, u in {"surprise": v - w @ x, "direct": v}.items():
        memory = Memory(Matrix(), L2(), (DGD(target),), chunk_size=1)  # pyright: ignore[reportArgumentType]
        state = memory.init_state((w,))
        state = chunked(memory, state, x[None], x[None], v[None], torch.tensor([eta]), torch.ones(1))[1]
        new = memory.weights(state, state.current)[0]
        close(new, argmin(lambda m, u=u: distance(m @ x, u) + distance(m, w) / eta, w))
        printed = eta / (1 + eta)
        differ(new, w @ (torch.eye(4) - printed * torch.outer(x, x)) + printed * torch.outer(u, x))


@pytest.mark.paper("Eq. 56-57, 99, 113")
@pytest.mark.parametrize("batch", [1, 7])
def test_the_optimizer_takes_that_step_on_every_layer(batch: int) -> None:
    """For a batch of n: the minimum of `1/(2n) sum |W x_i - u_i|^2 + |W - W_t|^2 / (2 eta)`, `u_i = -n dL/dy_i`."""
    first, last, eta = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False), 0.7
    model = nn.Sequential(first, nn.Tanh(), last)
    optimizer = dgd.DGD(layer_groups(model, {"*": {"rule": "matrix"}}), lr=eta).attach(model)
    x, target = torch.randn(batch, 4), torch.randn(batch, 3)
    z = first(x)
    h = z.tanh()
    y = last(h)
    delta = torch.autograd.grad(distance(y, target) / batch, (z, y))
    starts = [layer.weight.detach().clone() for layer in (first, last)]
    (distance(model(x), target) / batch).backward()
    optimizer.step()
    for layer, start, rows, slope in zip((first, last), starts, (x, h.detach()), delta, strict=True):
        close(layer.weight.detach(), minimum(rows, -batch * slope, start, eta))


def minimum(x: Tensor, u: Tensor, start: Tensor, eta: float) -> Tensor:
    """Of `1/(2n) sum |W x_i - u_i|^2 + |W - start|^2 / (2 eta)`."""
    return argmin(lambda w: distance(x @ w.mT, u) / len(x) + distance(w, start) / eta, start)


@pytest.mark.paper("Definition 5", "Eq. 59-60")
@pytest.mark.parametrize("alpha", [1.0, 0.8])
@pytest.mark.parametrize(("objective", "rule"), [(DotProduct(), GD()), (L2(), DGD("surprise"))])
def test_generalized_gradient_descent(objective: Objective, rule: Rule, alpha: float) -> None:
    """The minimum of an objective on (x, u) plus a retention, with u what W_t itself makes of x, here minus its slope.

    With the dot product and `|W - alpha W_t|^2 / (2 eta)` it is gradient descent with decay, with L2 and alpha = 1
    Delta Gradient Descent. The decay of Eq. 88 is no such retention for L2: it stands outside the bracket.
    """
    w, x, target, eta = torch.randn(3, 4), torch.randn(4), torch.randn(3), 0.7
    memory = Memory(Matrix(), L2(), (rule,), Decay("zero"), chunk_size=1)
    rates = torch.tensor([eta]), torch.tensor([alpha])
    state = chunked(memory, memory.init_state((w,)), x[None], x[None], target[None], *rates)[1]
    u = target - w @ x
    best = argmin(lambda m: objective.loss(m @ x, u) + distance(m, alpha * w) / eta, w)
    if isinstance(objective, DotProduct) or alpha == 1.0:
        close(state.current[0], best)
    else:
        step = eta / (1 + eta * x @ x)
        close(best, alpha * w @ (torch.eye(4) - step * torch.outer(x, x)) + step * torch.outer(u, x))
        close(state.current[0], w @ (alpha * torch.eye(4) - step * torch.outer(x, x)) + step * torch.outer(u, x))
        differ(state.current[0], best)
