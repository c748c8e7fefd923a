"""Small sets of parameters, and gradients for them."""

import pytest
import torch
from torch import Tensor, nn

from optim.tables import OPTIMIZERS

SHAPES = ((4, 6), (4, 6), (6, 3), (1, 5), (3, 2, 2, 2), (5,), ())


@pytest.fixture
def double():
    """Everything in float64, from seed 0."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=list(OPTIMIZERS))
def name(request):
    """An optimizer of the table."""
    return request.param


@pytest.fixture
def make(name):
    """The constructor of the optimizer under test."""
    return OPTIMIZERS[name]


def parameters(shapes=SHAPES, dtype=torch.float32) -> list[nn.Parameter]:
    """The same parameters at every call."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give(params, seed: int, scale: float = 1.0) -> None:
    """A gradient for every parameter, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def steps(optimizer, params, seeds, scale: float = 1.0) -> None:
    """One step for each seed."""
    for seed in seeds:
        give(params, seed, scale)
        optimizer.step()


def copies(params) -> list[Tensor]:
    """Values now."""
    return [p.detach().clone() for p in params]


def equal(a, b) -> bool:
    """Whether two lists of tensors are the same, bit for bit and in dtype."""
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def snapshot(optimizer) -> list[Tensor]:
    """Every state tensor's value, in order."""
    return [v.clone() for p in optimizer.state for _, v in sorted(optimizer.state[p].items())]
