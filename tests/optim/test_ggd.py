"""Definition 5 with its arguments: known optimizers where the argmin is known, optimality where it is not; float64."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from nestling.errors import InputError
from nestling.memory.objective import L2, DotProduct, Huber, Lp
from nestling.optim.dgd import DGD
from nestling.optim.ggd import GGD, GM, Near, argmin, corrected, surprise
from nestling.optim.gradients import Whitening
from nestling.optim.layerwise import layer_groups

ETA = 0.3


pytestmark = pytest.mark.usefixtures("double")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8, bias=False))


X, Y = torch.randn(2, 20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, clip: float | None = None) -> float:
    value = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        value = (model(X) - Y).square().sum(-1).mean()
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return float(value.detach())


def pair(first, second, steps: int = 3, clip: float | None = None, tolerance: float = 1e-9) -> None:
    """Two optimizers take the same path."""
    a, b = mlp(), mlp()
    b.load_state_dict(a.state_dict())
    train(a, first(a), steps, clip), train(b, second(b), steps, clip)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def all_layers(optimizer, **settings):
    return lambda m: optimizer(layer_groups(m, {"*": {"rule": "matrix"}}), lr=ETA, **settings).attach(m)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("value", [surprise, corrected])
def test_l2_is_dgd(value, maximize: bool, clip: float | None) -> None:
    settings = {"maximize": maximize, "weight_decay": 0.1}
    pair(all_layers(GGD, value=value, **settings), all_layers(DGD, value=value.__name__, **settings), clip=clip)


def test_the_dot_product_is_gradient_descent() -> None:
    pair(all_layers(GGD, objective=DotProduct()), lambda m: torch.optim.SGD(m.parameters(), lr=ETA), tolerance=1e-7)


def test_a_scaled_loss_unscaled_before_the_step_is_seen_unscaled() -> None:
    """GradScaler's way: output gradients are captured scaled, `.grad` is not."""
    models = [mlp() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, scale in zip(models, (1.0, 2.0**12), strict=True):
        optimizer = all_layers(GGD, objective=Huber(0.5))(model)
        (scale * (model(X) - Y).square().sum(-1).mean()).backward()
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= scale
        optimizer.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.paper("Eq. 60")
def test_a_corrected_answer_is_the_implicit_step_and_forgets_nothing() -> None:
    """`W - eta G (I + eta X^T X / n)^-1`: where the gradient is zero nothing moves."""
    layer = nn.Linear(8, 8, bias=False)
    before = layer.weight.detach().clone()
    optimizer = all_layers(GGD, value=corrected)(layer)
    loss = (layer(X) - Y).square().sum(-1).mean()
    loss.backward()
    optimizer.step()
    bracket = torch.eye(8) + ETA * X.mT @ X / 20
    assert layer.weight.grad is not None
    torch.testing.assert_close(
        layer.weight.detach(), before - ETA * torch.linalg.solve(bracket, layer.weight.grad.mT).mT
    )
    before = layer.weight.detach().clone()
    optimizer.zero_grad()
    (0 * layer(X).sum()).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before)


OBJECTIVES = [DotProduct(), L2(), Huber(0.3), Lp(3.0, 0.1), Lp(1.5, 0.1)]
PENALTIES = [Near(), Near(2), Near(1, Lp(4.0, 0.5)), Near(2, Huber(1.0))]
UNBOUNDED = (OBJECTIVES[0], PENALTIES[3])
"""Linear against linear far out: no least value."""


@pytest.mark.paper("Definition 5", "Eq. 59")
@pytest.mark.parametrize(("objective", "retention"), [p for p in product(OBJECTIVES, PENALTIES) if p != UNBOUNDED])
def test_every_combination_is_solved(objective, retention) -> None:
    """The slope of `fit + keep / eta` vanishes where the inner solver stops."""
    start, past, u = torch.randn(6, 8), torch.randn(retention.window, 6, 8), 2 * torch.randn(20, 6)
    x = X / 3

    def fit(w: Tensor) -> Tensor:
        return objective.loss(x @ w.mT, u).sum() / 20

    def keep(w: Tensor) -> Tensor:
        return retention(w, past)

    def slope(w: Tensor) -> float:
        return float(torch.func.grad(lambda w: fit(w) + keep(w) / ETA)(w).norm())

    found = argmin(fit, keep, start, x.mT @ x / 20, ETA, 200)
    assert slope(found) < 1e-6 * slope(start)


def test_an_inner_step_is_enough_for_l2() -> None:
    """The coordinates make the quadratic problem trivial."""
    calls = []
    x, u, start = X, torch.randn(20, 6), torch.randn(6, 8)

    def fit(w: Tensor) -> Tensor:
        calls.append(1)
        return (x @ w.mT - u).square().sum() / 40

    found = argmin(fit, lambda w: (w - start).square().sum() / 2, start, x.mT @ x / 20, ETA, 100)
    wanted = torch.linalg.solve(torch.eye(8) + ETA * x.mT @ x / 20, (start + ETA * u.mT @ x / 20).mT).mT
    torch.testing.assert_close(found, wanted)
    assert len(calls) <= 3


def test_retention_over_a_window_starts_from_its_mean() -> None:
    """`Ret(W, {W_i})` of Definition 5: with the dot product a gradient step from the mean of the last two states."""
    layer = nn.Linear(8, 8, bias=False)
    optimizer = all_layers(GGD, objective=DotProduct(), retention=Near(2))(layer)
    seen = [layer.weight.detach().clone()] * 2
    for _ in range(3):
        optimizer.zero_grad()
        (layer(X) - Y).square().sum(-1).mean().backward()
        assert layer.weight.grad is not None
        wanted = (seen[-1] + seen[-2]) / 2 - ETA * layer.weight.grad
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), wanted)
        seen.append(layer.weight.detach().clone())


def test_the_window_survives_state_dict() -> None:
    models = [mlp() for _ in range(2)]
    optimizers = [all_layers(GGD, retention=Near(3))(model) for model in models]
    train(models[0], optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("objective", [L2(), Huber(0.5), Lp(3.0)])
def test_it_learns(objective) -> None:
    model = mlp()
    first = train(model, all_layers(GGD, objective=objective, value=corrected)(model), 1)
    assert train(model, all_layers(GGD, objective=objective, value=corrected)(model), 30) < 0.6 * first


# Generalized momentum.

PLAIN = {"normalize": False, "rms": None}


def path(optimizer, steps: int = 5, scale: float = 1.0, **settings) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.zeros(4, 3)) for _ in range(2)]
    rule, seen = optimizer(parameters, lr=0.1, **settings), []
    for _ in range(steps):
        for p in parameters:
            p.grad = scale * torch.randn(4, 3, generator=generator)
        rule.step()
        seen.append(torch.stack([p.detach().clone() for p in parameters]))
    return seen


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_generalized_momentum_with_the_dot_product_is_momentum() -> None:
    same(path(GM, **PLAIN, objective=DotProduct()), path(torch.optim.SGD, momentum=0.9), 1e-7)


@pytest.mark.parametrize("eta", [0.5, 100.0])
def test_generalized_momentum_with_l2_is_implicit_delta_momentum(eta: float) -> None:
    """`(a m + eta G)(I + eta G^T G)^-1`, bounded for any step."""
    generator = torch.Generator().manual_seed(1)
    weights, memories, seen = [torch.zeros(4, 3)] * 2, [torch.zeros(4, 3)] * 2, []
    for _ in range(5):
        for i in range(2):
            g = torch.randn(4, 3, generator=generator)
            memories[i] = torch.linalg.solve(torch.eye(3) + eta * g.mT @ g, (0.9 * memories[i] + eta * g).mT).mT
            weights[i] = weights[i] - 0.1 * memories[i]
        seen.append(torch.stack(weights))
    same(path(GM, **PLAIN, inner_lr=eta), seen)


def test_generalized_momentum_with_a_window_and_a_preconditioner() -> None:
    found = path(GM, objective=DotProduct(), retention=Near(2), value=Whitening())
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close((found[3] - found[2]).square().mean((-2, -1)).sqrt(), torch.full((2,), 0.02))
    averaged, plain = (
        path(GM, **PLAIN, objective=DotProduct(), retention=Near(2)),
        path(GM, **PLAIN, objective=DotProduct()),
    )
    torch.testing.assert_close(averaged[0], plain[0])
    assert not torch.allclose(averaged[1], plain[1])


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_generalized_momentum_does_not_see_the_gradients_scale(scale: float) -> None:
    same(path(GM, scale=scale), path(GM))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Near(0),
        lambda: GM([nn.Parameter(torch.zeros(2, 2))], inner_steps=0),
        lambda: GM([nn.Parameter(torch.zeros(2, 2))], decay=2.0),
        lambda: GM([nn.Parameter(torch.zeros(2, 2))], rms=-1.0),
        lambda: GGD(mlp(), inner_steps=0),
        lambda: GGD(mlp(), rows=-1),
        lambda: DGD(mlp(), value="other"),
    ],
)
def test_settings_out_of_range_are_refused(build) -> None:
    with pytest.raises(InputError):
        build()
