"""The self-referential matrix with its backward pass by hand equals the definition, token by token."""

import pytest
import torch

from nestling.memory.srwm import rows, srwm, srwm_scan

N, D = 3, 5


def problem(length, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, length, D, dtype=torch.float64, generator=generator).mul(2).softmax(-1)
    weight = torch.randn(N, D, rows(D), dtype=torch.float64, generator=generator) * scale
    live = (torch.rand(N, length, generator=generator) > 0.3).double()
    return x.requires_grad_(), weight.requires_grad_(), live


def outcome(form, x, weight, live):
    """Outputs, last matrix, and gradients of a loss on both."""
    y, last = form(x, weight, live)
    loss = y.sin().sum() + (last * last.cos()).sum()
    return [y, last, *torch.autograd.grad(loss, (x, weight))]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 61])
def test_values_and_gradients_are_those_of_the_definition(length, padded):
    x, weight, live = problem(length)
    live = live if padded else None
    for fast, slow in zip(outcome(srwm, x, weight, live), outcome(srwm_scan, x, weight, live), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-12)


def test_any_cut_is_the_whole():
    x, weight, _ = problem(31)

    def cut(x, weight, live):
        outputs = []
        for part in x.tensor_split([1, 9, 24], 1):
            y, weight = srwm(part, weight)
            outputs.append(y)
        return torch.cat(outputs, 1), weight

    for parts, whole in zip(outcome(cut, x, weight, None), outcome(srwm, x, weight, None), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-12)


def test_what_is_given_is_left_alone_and_padding_writes_nothing():
    x, weight, _ = problem(9)
    before = weight.detach().clone()
    _, last = srwm(x, weight, torch.zeros(N, 9, dtype=torch.float64))
    assert torch.equal(last, before)
    srwm(x, weight)[0].sum().backward()
    assert torch.equal(weight.detach(), before)


def test_memory_is_a_few_rows_a_token():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        x, weight, _ = problem(200)
        srwm(x, weight)
    assert sum(kept) < N * 200 * (3 * D + 4 + rows(D)) + 2 * weight.numel()


def test_float32_gradients_do_not_drift_over_many_tokens():
    """Taking the writes back loses the rounding of a sum, no more."""
    x, weight, _ = problem(300, scale=D**-0.5)
    exact = outcome(srwm, x, weight, None)
    near = outcome(srwm, x.detach().float().requires_grad_(), weight.detach().float().requires_grad_(), None)
    plain = outcome(srwm_scan, x.detach().float().requires_grad_(), weight.detach().float().requires_grad_(), None)
    for a, b, c in zip(exact, near, plain, strict=True):
        assert (b - a).abs().max() < 4 * (c - a).abs().max() + 1e-5 * a.abs().max()
