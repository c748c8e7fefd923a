"""Pure pieces that optimizers are made of; every one acts on each matrix of (..., out, in)."""

from torch import Tensor


def rms(x: Tensor) -> Tensor:
    """Root mean square of each matrix, (..., 1, 1)."""
    return x.square().mean((-2, -1), keepdim=True).sqrt()


def to_rms(x: Tensor, target: float) -> Tensor:
    """Each matrix scaled to the root mean square `target`; zeros stay zeros."""
    return x * (target / rms(x).clamp(min=1e-30))
