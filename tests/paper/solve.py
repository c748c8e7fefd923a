"""The other side of most identities: a minimum, found from the objective alone."""

from collections.abc import Callable

import torch
from torch import Tensor


def argmin(objective: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Where a convex quadratic is smallest, of the shape of `like`: one Newton step from zero.

    Raises torch's LinAlgError where the Hessian is not positive definite, that is, where there is no single minimum.
    """
    start = torch.zeros(like.numel(), dtype=like.dtype)
    flat = lambda w: objective(w.view(like.shape))  # noqa: E731
    slope = torch.autograd.functional.jacobian(flat, start)
    factor = torch.linalg.cholesky(torch.autograd.functional.hessian(flat, start))
    return -torch.cholesky_solve(slope.unsqueeze(-1), factor).view(like.shape)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """`1/2 |a - b|^2`, the proximal term of step 1."""
    return (a - b).square().sum() / 2


def proximal(slope: Tensor, start: Tensor, eta: float) -> Tensor:
    """The minimum of `<slope, W> + |W - start|^2 / (2 eta)`."""
    return argmin(lambda w: (slope * w).sum() + distance(w, start) / eta, start)


def proximal_map(x: Tensor, u: Tensor, start: Tensor, eta: float) -> Tensor:
    """The minimum of `sum_i <W x_i, u_i> + |W - start|^2 / (2 eta)` over matrices; rows `x`, `u`, or one of each."""
    return argmin(lambda w: (x @ w.mT * u).sum() + distance(w, start) / eta, start)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def differ(a: Tensor, b: Tensor) -> None:
    """Not nearly equal: what a slip of the paper's would give."""
    assert (a - b).abs().max() > 1e-3 * b.abs().max()
