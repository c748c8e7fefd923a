"""The short convolution against its sum, in any ragged pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.layers.conv import ShortConvolution


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_equals_the_sum(width, silu):
    layer, x = ShortConvolution(3, width, silu).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(7):
        for i in range(width):
            if t - width + 1 + i >= 0:
                expected[:, t] += layer.weight[:, i].detach() * x[:, t - width + 1 + i]
    expected = torch.nn.functional.silu(expected) if silu else expected
    torch.testing.assert_close(layer(x)[0].detach(), expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=5))
def test_ragged_pieces_equal_rows_alone(sizes):
    layer, x = ShortConvolution(3), torch.randn(2, 25, 3)
    state, at, got = None, [0, 0], [[], []]
    for lengths in sizes:
        piece = torch.full((2, max(lengths) + 1, 3), 7.0)
        for b in range(2):
            piece[b, : lengths[b]] = x[b, at[b] : at[b] + lengths[b]]
        y, state = layer(piece, state, torch.tensor(lengths), keep=True)
        assert state["rows"].shape == (2, 3, 3)
        for b in range(2):
            got[b].append(y[b, : lengths[b]])
            at[b] += lengths[b]
    for b in range(2):
        torch.testing.assert_close(torch.cat(got[b]), layer(x[b : b + 1, : at[b]])[0][0] if at[b] else x[b, :0])


def test_gradients():
    layer, x = ShortConvolution(2, silu=True).double(), torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    state = {"rows": torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)}
    torch.autograd.gradcheck(lambda x, rows, w: layer(x, {"rows": rows})[0], (x, state["rows"], layer.weight))
