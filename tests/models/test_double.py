"""In float64 everything is float64: cuts agree to its precision, and gradients with differences of the loss."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from models.conftest import make, tokens
from nestling.models.cache import mapped

EXACT = {"atol": 1e-9, "rtol": 1e-9}
STEP = 1e-5


@pytest.fixture
def double(name):
    return make(name).double()


@torch.no_grad()
def test_states_and_outputs_keep_the_precision(double):
    out = double(tokens(2, 21), use_cache=True)
    kinds = {out.logits.dtype}
    mapped(out.cache.states, lambda leaf: kinds.add(leaf.dtype) if leaf.is_floating_point() else None)
    assert kinds == {torch.float64}


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 36), min_size=1, max_size=5, unique=True))
@torch.no_grad()
def test_any_cut(double, cuts):
    ids = tokens(2, 37)
    cache, parts = None, []
    for part in ids.tensor_split(sorted(cuts), 1):
        out = double(part, cache=cache, use_cache=True)
        parts.append(out.logits)
        cache = out.cache
    torch.testing.assert_close(torch.cat(parts, 1), double(ids).logits, **EXACT)


def test_gradients_are_slopes_of_the_loss(double):
    """Each parameter alone, along a random direction: central differences, over two calls with a carried state."""
    ids, generator = tokens(2, 24), torch.Generator().manual_seed(0)

    def loss():  # not the model's own, which is computed in float32
        first = double(ids[:, :11], use_cache=True)
        logits = torch.cat((first.logits, double(ids[:, 11:], cache=first.cache).logits), 1)
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    loss().backward()
    for name, parameter in double.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction *= parameter.detach().norm().clamp(min=0.1) / direction.norm()
        expected, value, found = (parameter.grad * direction).sum().item(), parameter.detach().clone(), []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.copy_(value + sign * STEP * direction)
                found.append(loss().item())
            parameter.copy_(value)
        slope = (found[0] - found[1]) / (2 * STEP)
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-9), name
