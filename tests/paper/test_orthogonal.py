"""Newton-Schulz and Muon: Sec. 4.2 and the last extension of Sec. 4.4."""

import pytest
import torch
from torch import Tensor

from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import DotProduct
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.structure import Matrix
from nestling.optim import Muon
from nestling.optim.orthogonal import QUINTIC, cubic, newton_schulz, proximal
from paper.solve import close, differ, distance

SHAPES = [(4, 4), (3, 5), (6, 2)]


def from_orthogonal(o: Tensor) -> Tensor:
    """`|O^T O - I|_F^2`, for a wide O `|O O^T - I|_F^2`, which has the same gradient."""
    o = o.mT if o.shape[0] < o.shape[1] else o
    return (o.mT @ o - torch.eye(o.shape[1])).square().sum()


def slope(objective, o: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(objective, o)


@pytest.mark.paper("Eq. 43")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cubic_is_gradient_descent_on_the_distance_from_orthogonality(shape: tuple[int, int]) -> None:
    """`(3 X - X X^T X) / 2` is a step of 1/8 on `|O^T O - I|_F^2`; many of them give the orthogonal factor."""
    g = torch.randn(shape)
    x = g / g.norm()
    close(cubic(x), x - slope(from_orthogonal, x) / 8)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    close(cubic(x, 60), u @ v)


@pytest.mark.paper("Eq. 44")
@pytest.mark.parametrize("shape", SHAPES)
def test_descent_with_a_pull_to_the_gradient_does_not_end_orthogonal(shape: tuple[int, int]) -> None:
    """Eq. 44 is descent on `1/2 |O - g|^2 + 1/2 |O^T O - I|^2`; its first step, of 1/4, is the cubic, no other is.

    It ends where `2 s^3 - s` is the singular value of g; the cubic ends at 1.
    """
    g = torch.randn(shape)
    g = g / g.norm()

    def objective(o: Tensor) -> Tensor:
        return distance(o, g) + from_orthogonal(o) / 2

    o, zeta = g, 0.1
    for steps in range(4):
        close(proximal(g, steps, zeta), o)
        o = o - zeta * slope(objective, o)
    close(proximal(g, 1, 0.25), cubic(g))
    differ(proximal(g, 2, 0.25), cubic(g, 2))
    s = torch.linalg.svdvals(proximal(g, 2000, zeta))
    close(2 * s**3 - s, torch.linalg.svdvals(g), 1e-9)
    assert s.min() < 0.95


@pytest.mark.paper("Eq. 42-43")
@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_acts_on_singular_values_only(shape: tuple[int, int]) -> None:
    """Muon's polynomial makes of every singular value, divided by the norm, what its scalar twin makes of it."""
    m = torch.randn(shape)
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    scalar = s / m.norm()
    for _ in range(5):
        scalar = QUINTIC[0] * scalar + QUINTIC[1] * scalar**3 + QUINTIC[2] * scalar**5
    close(newton_schulz(m, dtype=torch.float64), (u * scalar) @ v, 1e-9)


@pytest.mark.paper("Eq. 42-43")
def test_where_the_quintic_ends() -> None:
    """Between 0.68 and 1.203 for every singular value of at least 0.0016 of the norm: it does not converge to 1."""
    s = torch.cat([torch.logspace(-2.8, 0, 20001), torch.linspace(0.0016, 1, 20001)])
    for _ in range(5):
        s = QUINTIC[0] * s + QUINTIC[1] * s**3 + QUINTIC[2] * s**5
    assert 0.68 <= s.min() < 0.70
    assert 1.20 < s.max() <= 1.203


@pytest.mark.paper("Eq. 42, 52")
@pytest.mark.parametrize("step", [1.0, 1e-3])
def test_muon_is_a_linear_memory_of_gradients_with_newton_schulz_as_output(step: float) -> None:
    """`W + lr NewtonSchulz(m)`, m the library's Hebbian memory of layer inputs and `-delta`, read at the identity.

    The step size inside m, where Eq. 42 has its only one, changes nothing: Newton-Schulz removes the scale.
    """
    alpha, rate, w = 0.9, 0.02, torch.randn(4, 4, requires_grad=True)
    plain = {"lr": rate, "momentum": alpha, "nesterov": False, "weight_decay": 0.0}
    optimizer = Muon([w], **plain, adjust_lr="original", precision="float64")
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=1)
    state, expected = memory.init_state((torch.zeros(4, 4),)), w.detach().clone()
    for x, y in zip(torch.randn(6, 1, 4), torch.randn(6, 1, 4), strict=True):
        delta = (x @ w.mT - y).detach()
        optimizer.zero_grad()
        distance(x @ w.mT, y).backward()
        optimizer.step()
        state = chunked(memory, state, x, x, -delta, torch.tensor([step]), torch.tensor([alpha]))[1]
        expected = expected + rate * newton_schulz(state.current[0], dtype=torch.float64)
        close(w.detach(), expected, 1e-9)


@pytest.mark.paper("Eq. 42, 52")
def test_it_is_torchs_muon() -> None:
    """The same weights as torch.optim.Muon at the same settings, Newton-Schulz in bfloat16, to its rounding."""
    start, rate = torch.randn(6, 3), 0.02
    ours, torchs = (start.clone().requires_grad_() for _ in range(2))
    plain = {"lr": rate, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    optimizers = Muon([ours], **plain, adjust_lr="original"), torch.optim.Muon([torchs], **plain)
    for g in torch.randn(5, 6, 3):
        for w, optimizer in zip((ours, torchs), optimizers, strict=True):
            w.grad = g.clone()
            optimizer.step()
    torch.testing.assert_close(ours, torchs, rtol=0, atol=5 * rate * 2 * 2**-8)
