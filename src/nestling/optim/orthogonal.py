"""Orthogonalization: Newton-Schulz iterations, and gradient descent on a distance from orthogonality (Eq. 43-44).

Every function takes matrices (..., out, in), acts on each, and moves singular values only (Nested Learning, Sec. 4.2).
"""

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's polynomial: the steepest slope at 0, at the price of not ending at 1."""

LEAF = {"cpu": 512}
"""Rows up to which a symmetric product is one product, by device; elsewhere it always is."""


def newton_schulz(
    x: Tensor,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    dtype: torch.dtype = torch.bfloat16,
    eps: float = 1e-30,
) -> Tensor:
    """Roughly the orthogonal factor U V^T of x = U S V^T: `X <- a X + (b A + c A^2) X`, `A = X X^T`, from x/|x|_F.

    Each singular value s of x/|x|_F becomes what the scalar polynomial `a s + b s^3 + c s^5`, iterated, makes of it.
    With the given coefficients and 5 steps that is in [0.68, 1.203] for s >= 0.0016; it does not converge to 1. Zeros
    stay zeros, and the scale of x has no effect.

    Args:
        x: (..., out, in); not changed.
        steps: iterations.
        coefficients: a, b, c.
        dtype: of the computation and the result.
        eps: least norm to divide by.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(dtype)
    shape = y.shape
    # One matrix goes through the two-dimensional products, which copy less.
    y = y.view(shape[-2:]) if shape[:-2].numel() == 1 else y.flatten(0, -3)
    size = y.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    y = y / size if dtype == x.dtype else y.div_(size)
    for _ in range(steps):
        gram = _symmetric(y)
        polynomial = _symmetric(gram, gram, b, c)
        y = _added(y, polynomial, y, a)
    y = y.view(shape)
    return y.mT if tall else y


def _added(base: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """`beta base + alpha left right`."""
    return (torch.addmm if base.ndim == 2 else torch.baddbmm)(base, left, right, beta=beta, alpha=alpha)


def _symmetric(x: Tensor, base: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """`x x^T`, or `beta base + alpha x x^T` for a symmetric base: of a large one only the lower blocks are computed."""
    rows = x.shape[-2]
    if rows <= LEAF.get(x.device.type, rows):
        return x @ x.mT if base is None else _added(base, x, x.mT, beta, alpha)
    half = rows // 2
    top, bottom = x[..., :half, :], x[..., half:, :]
    if base is None:
        first, corner, last = _symmetric(top), bottom @ top.mT, _symmetric(bottom)
    else:
        first = _symmetric(top, base[..., :half, :half], beta, alpha)
        corner = _added(base[..., half:, :half], bottom, top.mT, beta, alpha)
        last = _symmetric(bottom, base[..., half:, half:], beta, alpha)
    return torch.cat((torch.cat((first, corner.mT), -1), torch.cat((corner, last), -1)), -2)


def cubic(x: Tensor, steps: int = 1) -> Tensor:
    """`X <- (3 X - X X^T X)/2`, `steps` times: gradient descent on `|X^T X - I|_F^2` (Eq. 43) with step 1/8.

    Converges, quadratically at the end, to the orthogonal factor U V^T of x = U S V^T if every singular value is in
    (0, sqrt 3); singular values 0 stay 0. Divide x by its norm first.
    """
    for _ in range(steps):
        x = 1.5 * x - 0.5 * (x @ x.mT @ x)
    return x


def proximal(g: Tensor, steps: int = 1, step_size: float = 0.1) -> Tensor:
    """Eq. 44: `O <- O - step_size (O - g + 2 O (O^T O - I))` from O = g, `steps` times.

    Gradient descent on `|O - g|_F^2 / 2 + |O^T O - I|_F^2 / 2`. It converges (for singular values of g in [0, 1] and
    step_size below 2/5) to the matrix with g's singular vectors whose singular values s solve `2 s^3 - s = sigma`,
    sigma being g's: 1 for sigma = 1, towards 1/sqrt 2 for small ones. So the limit is not orthogonal unless g is.
    """
    o = g
    for _ in range(steps):
        o = o - step_size * (o - g + 2 * (o @ o.mT @ o - o))
    return o
