"""Feed-forward mixers, norms: the formulas, and the edges."""

import pytest
import torch

from nestling.layers.feedforward import MLP, SwiGLU
from nestling.layers.norm import RMSNorm
from nestling.memory.stack import unit


@pytest.mark.parametrize("kind", [SwiGLU, MLP])
def test_keeps_nothing_from_token_to_token(kind):
    layer, x = kind(6, 10), torch.randn(2, 5, 6)
    whole, state = layer(x)
    assert state is None
    first, state = layer(x[:, :2], keep=True)
    assert state == {}
    torch.testing.assert_close(torch.cat((first, layer(x[:, 2:], state)[0]), 1), whole)


def test_formulas():
    x = torch.randn(2, 5, 6)
    gated, plain = SwiGLU(6, 10), MLP(6, 10)
    gate = x @ gated.gate.weight.T
    torch.testing.assert_close(gated(x)[0], (gate * gate.sigmoid() * (x @ gated.up.weight.T)) @ gated.output.weight.T)
    torch.testing.assert_close(plain(x)[0], torch.nn.functional.gelu(x @ plain.up.weight.T) @ plain.output.weight.T)


def test_rms_norm():
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(RMSNorm(8)(x), x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt())


def test_unit_at_zero():
    x = torch.zeros(2, 3, requires_grad=True)
    y = unit(x)
    y.sum().backward()
    assert (y == 0).all()
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(unit(torch.randn(5, 8)).norm(dim=-1), torch.ones(5))
