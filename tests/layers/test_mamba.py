"""Mamba as a mixer: against its formulas token by token, initial values, precision, any ragged pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from nestling.layers.mamba import Mamba


def make(**options):
    torch.manual_seed(0)
    return Mamba(8, **{"state_size": 3} | options).double()


def written_out(layer, x):
    """One sequence (T, D), token by token, from the weights alone."""
    channels = layer.skip.shape[0]
    state, window, outputs = torch.zeros(layer.log_rate.shape), torch.zeros(layer.conv.width, channels), []
    for token in x:
        value, gate = (layer.project.weight @ token).split(channels)
        window = torch.cat((window[1:], value[None]))
        value = functional.silu((window * layer.conv.weight.T).sum(0) + layer.conv.bias)
        low, key, query = (layer.select.weight @ value).split(layer.sizes)
        step = torch.log1p(torch.exp(layer.step.weight @ low + layer.step.bias))
        state = torch.exp(-step * layer.log_rate.exp()) * state + torch.outer(key, step * value)
        y = query @ state + layer.skip * value
        outputs.append(layer.output.weight @ (y * functional.silu(gate)))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", [{}, {"rank": 3, "expand": 3}, {"conv_width": 1, "state_size": 1}])
def test_equals_the_formulas(options):
    layer, x = make(**options), torch.randn(2, 19, 8, dtype=torch.float64, requires_grad=True)
    y, state = layer(x)
    expected = torch.stack([written_out(layer, row) for row in x])
    assert state is None
    torch.testing.assert_close(y, expected)
    leaves, weight = [x, *layer.parameters()], torch.randn_like(y)
    grads = [torch.autograd.grad((z * weight).sum(), leaves) for z in (y, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=4))
def test_ragged_pieces_equal_rows_alone(sizes):
    layer, x = make(), torch.randn(2, 80, 8, dtype=torch.float64)
    state, at, got = None, [0, 0], [[], []]
    for lengths in sizes:
        piece = torch.full((2, max(lengths) + 1, 8), 7.0, dtype=torch.float64)
        for b in range(2):
            piece[b, : lengths[b]] = x[b, at[b] : at[b] + lengths[b]]
        y, state = layer(piece, state, torch.tensor(lengths), keep=True)
        for b in range(2):
            got[b].append(y[b, : lengths[b]])
            at[b] += lengths[b]
    for b in range(2):
        if at[b]:
            whole, alone = layer(x[b : b + 1, : at[b]], keep=True)
            torch.testing.assert_close(torch.cat(got[b]), whole[0])
            torch.testing.assert_close(state["memory"][b : b + 1], alone["memory"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_initial_values(dtype):
    torch.manual_seed(0)
    layer = Mamba(256).to(dtype)
    layer.reset_parameters()
    steps = functional.softplus(layer.step.bias.float())
    assert 0.9e-3 < steps.min() < 1.1e-3
    assert 0.9e-1 < steps.max() < 1.1e-1
    assert steps.log().mean().item() == pytest.approx(-4.6, abs=0.1)
    for row, rate in enumerate(layer.log_rate.float().exp(), 1):
        torch.testing.assert_close(rate, torch.full_like(rate, row), rtol=1e-2, atol=0)
    assert (layer.skip == 1).all()
    for linear, width in ((layer.project, 256), (layer.select, 512), (layer.step, 16)):
        assert linear.weight.float().abs().max().item() == pytest.approx(width**-0.5, rel=0.02)
        assert linear.weight.float().std().item() == pytest.approx((3 * width) ** -0.5, rel=0.05)


def test_low_precision_keeps_the_memory_in_float32():
    layer, x = make().bfloat16(), torch.randn(2, 9, 8)
    y, state = layer(x.bfloat16(), keep=True)
    assert y.dtype == torch.bfloat16
    assert state["memory"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        y, state = make().float()(x, keep=True)
    assert state["memory"].dtype == torch.float32
    torch.testing.assert_close(y.float(), make().float()(x)[0], rtol=0.1, atol=0.02)


def test_what_is_not_decayed():
    exempt = {name for name, p in make().named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert exempt == {"log_rate", "skip"}


def test_components():
    kinds = [(one.name, one.kind, one.period, one.parameters) for one in make().components()]
    assert kinds == [("short convolution", "convolution", 1, 3 * 16), ("selective state", "memory", 1, 3 * 16)]
