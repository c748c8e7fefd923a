"""The chunked selective scan against its definition: values, gradients, cuts, padding, decays down to nothing."""

import pytest
import torch

from nestling.memory.selective import selective, selective_scan

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
SIZE = 4


def inputs(length, seed=0, decay=3.0):
    """x, dt, A, B, C, D and a state, of which decays a token reach from 1 to about exp(-decay^2)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = [draw(2, length, 5), draw(2, length, 5).abs() * decay, -draw(3, 5).abs() * decay]
    return [leaf.requires_grad_() for leaf in (*rows, draw(2, length, 3), draw(2, length, 3), draw(5), draw(2, 3, 5))]


def check(found, expected, leaves, weights=None):
    """Equal outputs, and equal gradients of one random sum of them."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    weights = [torch.randn_like(one) for one in found] if weights is None else weights
    grads = []
    for outputs in (found, expected):
        total = sum((one * weight).sum() for one, weight in zip(outputs, weights, strict=True))
        grads.append(torch.autograd.grad(total, leaves))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 17])
@pytest.mark.parametrize("decay", [0.1, 3.0, 30.0])
def test_equals_the_definition(length, decay):
    leaves = inputs(length, decay=decay)
    check(selective(*leaves, size=SIZE), selective_scan(*leaves), leaves)


def test_starts_from_zero():
    *leaves, _ = inputs(9)
    check(selective(*leaves), selective_scan(*leaves), leaves)


def test_one_channel_by_the_sum():
    """h_T = sum over s of exp(A times the steps after s) B_s dt_s x_s, without any recurrence."""
    x, dt, A, B, C, D, _ = inputs(12)
    steps = dt.cumsum(1)
    logs = (steps[:, :, None] - steps[:, None])[:, :, :, None] * A  # (B, t, s, N, E)
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)[:, :, None, None]
    h = torch.einsum("btsne,bsn,bse->btne", logs.masked_fill(future, -torch.inf).exp(), B, dt * x)
    expected = torch.einsum("btne,btn->bte", h, C) + D * x
    torch.testing.assert_close(selective(x, dt, A, B, C, D)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", range(1, 11))
def test_any_cut(cut):
    leaves = inputs(11)
    x, dt, A, B, C, D, state = leaves
    first, middle = selective(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, state, size=SIZE)
    second, last = selective(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, middle, size=SIZE)
    check((torch.cat((first, second), 1), last), selective_scan(*leaves), leaves)


def test_a_step_of_zero_passes_the_state():
    x, dt, A, B, C, D, state = inputs(7)
    padded = dt * (torch.arange(7) < 4)[:, None]
    y, last = selective(x, padded, A, B, C, D, state, size=SIZE)
    shorter, expected = selective(x[:, :4], dt[:, :4], A, B[:, :4], C[:, :4], D, state, size=SIZE)
    assert torch.equal(last, expected)
    assert torch.equal(y[:, :4], shorter)


def test_decays_to_nothing_and_not_at_all():
    """exp(-30) and exp(-3000) a token, and none: all finite, and equal to the definition in float32 too."""
    x, dt, A, B, C, D, state = (leaf.detach().float() for leaf in inputs(40))
    A = torch.tensor([-30.0, -3000.0, -1e-9], dtype=torch.float32)[:, None].expand_as(A)
    leaves = [leaf.clone().requires_grad_() for leaf in (x, torch.ones_like(dt), A, B, C, D, state)]
    found, expected = selective(*leaves), selective_scan(*leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for grad in torch.autograd.grad(found[0].square().sum(), leaves):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_by_differences(which):
    """Of the reads alone, and of the last state alone."""
    torch.autograd.gradcheck(lambda *leaves: selective(*leaves, size=3)[which], inputs(7))


def test_one_state_a_chunk_is_kept():
    leaves, sizes = inputs(64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.shape) or x, lambda x: x):
        selective(*leaves, size=16)
    assert max(shape.numel() for shape in sizes) == 2 * 64 * 5
    assert torch.Size((4, 2, 3, 5)) in sizes


def test_the_operator_keeps_torchs_rules():
    """Schema, shapes without data, gradients, and the compiler's tracing agree with the operator."""
    x, dt, A, B, C, _, state = inputs(7)
    turned = (leaf.detach().mT.contiguous().mT.requires_grad_() for leaf in (x, dt, A, B, C, state))
    torch.library.opcheck(torch.ops.nestling.selective.default, (*turned, 3))


def test_there_is_no_second_derivative():
    leaves = inputs(3)
    (grad,) = torch.autograd.grad(selective(*leaves)[0].sum(), leaves[3], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_backward"):
        grad.sum().backward()
