"""Newton-Schulz and the two gradient descents, by singular values and by autograd; float64."""

import pytest
import torch

from nestling.optim import orthogonal
from nestling.optim.orthogonal import cubic, newton_schulz, proximal
from nestling.optim.transform import rms, to_rms

pytestmark = pytest.mark.usefixtures("double")


def with_singular_values(values, rows=5, columns=7):
    u = torch.linalg.qr(torch.randn(rows, rows))[0][:, : len(values)]
    v = torch.linalg.qr(torch.randn(columns, columns))[0][:, : len(values)]
    return u @ torch.diag(torch.as_tensor(values)) @ v.mT, u @ v.mT


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 4, 6), (2, 3, 6, 4), (1, 5, 5)])
def test_any_number_of_matrices_one_by_one(shape):
    x = torch.randn(shape)
    before = x.clone()
    flat = x.reshape(-1, *shape[-2:])
    found = newton_schulz(x, dtype=torch.float64)
    assert torch.equal(x, before)
    single = torch.stack([newton_schulz(matrix, dtype=torch.float64) for matrix in flat]).reshape(shape)
    torch.testing.assert_close(found, single)


def test_a_tall_matrix_is_a_wide_one_transposed():
    x = torch.randn(6, 4)
    torch.testing.assert_close(newton_schulz(x.mT, dtype=torch.float64), newton_schulz(x, dtype=torch.float64).mT)


def test_singular_values_end_in_the_stated_band():
    x, _ = with_singular_values([1.0, 0.3, 0.05, 0.004, 0.0017])
    found = torch.linalg.svdvals(newton_schulz(x, dtype=torch.float64))
    assert found.min() >= 0.68
    assert found.max() <= 1.203


def test_the_band_is_the_polynomials():
    sigma = torch.linspace(0.0016, 1, 20001)
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    assert sigma.min() >= 0.68
    assert sigma.max() <= 1.203


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zeros_stay_zeros_and_the_dtype_is_the_one_asked_for(dtype):
    found = newton_schulz(torch.zeros(2, 3, 4), dtype=dtype)
    assert found.dtype == dtype
    assert not found.any()


def test_bfloat16_is_near_the_truth():
    x = torch.randn(3, 32, 48)
    exact = newton_schulz(x, dtype=torch.float64)
    assert (newton_schulz(x).double() - exact).norm() / exact.norm() < 0.02


def test_the_cubic_is_gradient_descent_with_step_one_eighth():
    """Eq. 43, by autograd."""
    x = torch.randn(5, 3, requires_grad=True)
    objective = (x.mT @ x - torch.eye(3)).square().sum()
    (slope,) = torch.autograd.grad(objective, x)
    torch.testing.assert_close(cubic(x), x - slope / 8)


def test_the_cubic_converges_to_the_orthogonal_factor():
    x, polar = with_singular_values([1.7, 1.0, 0.3, 0.01])
    torch.testing.assert_close(cubic(x, 30), polar)


def test_equation_44_is_gradient_descent_on_two_objectives():
    g, o = torch.randn(3, 5), torch.randn(3, 5, requires_grad=True)
    objective = (o - g).square().sum() / 2 + (o.mT @ o - torch.eye(5)).square().sum() / 2
    (slope,) = torch.autograd.grad(objective, o)
    torch.testing.assert_close(slope, o - g + 2 * o @ (o.mT @ o - torch.eye(5)))
    first = proximal(g, 1, 0.1)
    torch.testing.assert_close(first, g - 0.1 * 2 * g @ (g.mT @ g - torch.eye(5)))


def test_equation_44_ends_short_of_orthogonality():
    """Where 2 s^3 - s = sigma."""
    sigma = torch.tensor([1.0, 0.5, 0.1])
    x, polar = with_singular_values(sigma)
    end = proximal(x, 2000)
    s = torch.linalg.svdvals(end)[:3]
    torch.testing.assert_close(2 * s**3 - s, sigma)
    assert (end - polar).norm() > 0.1
    torch.testing.assert_close(proximal(polar, 10), polar)


def test_scaling_to_a_root_mean_square():
    x = torch.randn(3, 4, 5) * torch.tensor([1e-9, 1.0, 1e9]).view(3, 1, 1)
    torch.testing.assert_close(rms(to_rms(x, 0.2)), torch.full((3, 1, 1), 0.2))
    assert not to_rms(torch.zeros(2, 3), 0.2).any()


@pytest.mark.parametrize("shape", [(11, 11), (7, 20), (3, 10, 13)])
def test_symmetric_products_by_blocks_change_nothing(shape, monkeypatch):
    x = torch.randn(shape, dtype=torch.float64)
    whole = newton_schulz(x, dtype=torch.float64)
    monkeypatch.setitem(orthogonal.LEAF, "cpu", 2)
    torch.testing.assert_close(newton_schulz(x, dtype=torch.float64), whole, rtol=0, atol=1e-12)
