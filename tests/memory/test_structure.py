"""Hand-written gradients against automatic ones, and what objectives, links and features promise."""

import pytest
import torch

from memory.tables import HIDDEN, OBJECTIVES, STRUCTURES, D, close
from nestling.errors import InputError
from nestling.memory.feature import Identity, Polynomial, Positive, Power
from nestling.memory.objective import L2, Huber, Lp
from nestling.memory.structure import MLP, Matrix, ResidualMLP, fixed, gelu_slope, init


@pytest.mark.paper("Eq. 29")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_writes_are_the_gradient(structure: str, objective: str) -> None:
    shape, loss = STRUCTURES[structure], OBJECTIVES[objective]
    weights = init(shape, D, D, HIDDEN)
    k, v = torch.randn(5, D), torch.randn(5, D)

    def total(weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return loss.loss(shape.forward(fixed(weights), k), v).sum()

    sights = shape.writes(weights, k, v, loss)
    for sight, gradient in zip(sights, torch.func.grad(total)(weights), strict=True):
        close(sight.delta.mT @ sight.x, gradient, 1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_direct_target_is_what_the_layer_should_put_out(structure: str) -> None:
    shape = STRUCTURES[structure]
    k, v = torch.randn(2, 5, D)
    sights = shape.writes(init(shape, D, D, HIDDEN), k, v, L2())
    assert tuple(sight.target is not None for sight in sights) == shape.direct
    target = sights[0].target
    assert target is not None
    first = [lambda x: target, *fixed(init(shape, D, D, HIDDEN))[1:]]
    close(shape.forward(first, k), v)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_delta_is_the_gradient_of_the_loss(objective: str) -> None:
    loss = OBJECTIVES[objective]
    y, v = 2 * torch.randn(6, D).requires_grad_(), torch.randn(6, D)
    close(loss.delta(y, v), torch.autograd.grad(loss.loss(y, v).sum(), y)[0], 1e-12)


def test_l2_gradient_is_the_error_and_p_two_is_l2() -> None:
    y, v = torch.randn(2, 6, D)
    close(L2().delta(y, v), y - v)
    close(Lp(2.0).delta(y, v), y - v)
    close(Lp(2.0).loss(y, v), L2().loss(y, v))
    close(Huber(1e9).loss(y, v), L2().loss(y, v), 1e-6)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 4.0])
def test_lp_is_smooth_at_a_zero_error(p: float) -> None:
    y = torch.zeros(3, requires_grad=True)
    delta = Lp(p).delta(y, torch.zeros(3))
    slope = torch.autograd.grad(delta.sum(), y)[0]
    assert (delta == 0).all()
    assert slope.isfinite().all()


def test_gelu_slope() -> None:
    x = torch.linspace(-4, 4, 50, requires_grad=True)
    close(gelu_slope(x), torch.autograd.grad(torch.nn.functional.gelu(x).sum(), x)[0], 1e-12)


def test_init_has_the_stated_scale_and_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = init(ResidualMLP(3), 64, 64, 128, (4,), gain=0.5, generator=generator)
    assert [tuple(w.shape) for w in weights] == [(4, 64, 128), (4, 128, 128), (4, 128, 64)]
    for w in weights:
        assert abs(float(w.std()) * w.shape[-1] ** 0.5 / 0.5 - 1) < 0.03


def test_residual_needs_equal_widths() -> None:
    with pytest.raises(InputError, match="use Matrix"):
        ResidualMLP().shapes(3, 4, 5)
    assert Matrix().shapes(3, 4, 5) == ((4, 3),)


def test_features() -> None:
    x, y = 0.5 * torch.randn(2, 7, D)
    phi = Polynomial(3)
    dot = (x * y).sum(-1)
    assert phi(x).shape[-1] == phi.width(D)
    close((phi(x) * phi(y)).sum(-1), 1 + dot + dot**2 / 2 + dot**3 / 6)
    assert (Positive()(x) > 0).all()
    close(Power(3.0)(x), x**3)
    assert (Power(0.5)(-x) == -Power(0.5)(x)).all()
    assert Positive().width(D) == Identity().width(D) == Power().width(D) == D


@pytest.mark.parametrize("layers", [2, 3])
def test_a_plain_mlp_is_odd(layers: int) -> None:
    weights = init(MLP(layers), D, 2 * D, HIDDEN)
    x = torch.randn(5, D)
    close(MLP(layers).forward(fixed(weights), -x), -MLP(layers).forward(fixed(weights), x))


def test_mlps_refuse_what_they_are_not() -> None:
    with pytest.raises(InputError, match="gelu, tanh"):
        MLP(activation="relu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="use Matrix"):
        MLP(1)
