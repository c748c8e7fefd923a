"""The twin of `recur` by flash-linear-attention's kernels: what it hands them, and, where they are, they themselves.

The three functions below have the arguments of fla's kernels and what these compute, one token after the other.
"""

import importlib.util

import pytest
import torch

from nestling.errors import InputError
from nestling.kernels.dispatch import recurrence
from nestling.kernels.fla import Functions, Recurrence, functions
from nestling.memory.recurrence import recur, recur_scan

CASES = ["adds", "delta", "gated delta", "comba", "other rows", "rwkv7", "channels"]


def _tokens(h, length, q, step, scale):
    """fla's outer form: `step` makes h (B, H, d, o) of h and a token; outputs (B, T, H, o) read it afterwards."""
    outputs = []
    for t in range(length):
        h = step(h, t)
        outputs.append(scale * torch.einsum("bhd,bhdo->bho", q[:, t], h))
    return torch.stack(outputs, 1), h


def _start(k, v, initial_state):
    return k.new_zeros(*k.shape[::2], k.shape[3], v.shape[3]) if initial_state is None else initial_state


def _outer(x, y):
    return x[..., :, None] * y[..., None, :]


def simple_gla(q, k, v, g, g_gamma=None, scale=None, initial_state=None, output_final_state=False):
    assert output_final_state
    return _tokens(
        _start(k, v, initial_state),
        k.shape[1],
        q,
        lambda h, t: g[:, t].exp()[..., None, None] * h + _outer(k[:, t], v[:, t]),
        scale,
    )


def comba(q, k, v, p, g, beta=None, scale=None, initial_state=None, output_final_state=False):
    def step(h, t):
        h = g[:, t].exp()[..., None, None] * h
        error = v[:, t] - torch.einsum("bhd,bhdo->bho", p[:, t], h)
        return h + _outer(k[:, t], beta[:, t, :, None] * error)

    assert output_final_state
    return _tokens(_start(k, v, initial_state), k.shape[1], q, step, scale)


def rwkv7(r, w, k, v, a, b, scale=1.0, initial_state=None, output_final_state=False):
    def step(h, t):
        read = torch.einsum("bhd,bhdo->bho", a[:, t], h)
        return w[:, t].exp()[..., None] * h + _outer(b[:, t], read) + _outer(k[:, t], v[:, t])

    assert output_final_state
    return _tokens(_start(k, v, initial_state), k.shape[1], r, step, scale)


LITERAL = Functions(simple_gla, comba, rwkv7)


def inputs(case, length=21, dtype=torch.float64, device="cpu", width=8):
    """Arguments of `recur` for a case; the last five tokens of the second sequence are padding."""
    generator = torch.Generator().manual_seed(0)

    def rows(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    B, H, T, d, o = 2, 3, length, width, 2 * width
    q, k, p, r = (torch.nn.functional.normalize(rows(B, H, T, d), dim=-1) for _ in range(4))
    v, state = rows(B, H, T, o), rows(B, H, o, d)
    beta, alpha = rows(B, H, T, 1).sigmoid(), -0.2 * rows(B, H, T, 1).exp()
    live = torch.ones(B, 1, T, 1, dtype=torch.float64)
    live[1, :, -5:] = 0
    per_channel = case in ("rwkv7", "channels")
    alpha = (-0.2 * rows(B, H, T, d).exp() if per_channel else alpha) * live
    log_alpha = alpha if per_channel else alpha[..., 0]
    made = {
        "adds": lambda: (-0.1 * torch.arange(1.0, 4.0, dtype=torch.float64)[:, None].expand(-1, T), None),
        "delta": lambda: (torch.zeros(T, dtype=torch.float64), (beta * k, None)),
        "gated delta": lambda: (log_alpha, (alpha.exp() * beta * k, None)),
        "comba": lambda: (log_alpha, (alpha.exp() * beta * 0.7 * k, None)),
        "other rows": lambda: (log_alpha, (p, beta * r)),
        "rwkv7": lambda: (log_alpha, (p, beta * p)),
        "channels": lambda: (log_alpha, None),
    }
    log_alpha, erase = made[case]()
    tensors = [x.to(device, dtype).requires_grad_() for x in (q, k, live * v, log_alpha, state)]
    q, k, v, log_alpha, state = tensors
    if erase is not None:
        p = (live * erase[0]).to(device, dtype).requires_grad_()
        tensors.append(p)
        erase = (p, k if erase[1] is None else erase[1].to(device, dtype))
    return (q, k, v, log_alpha, erase, state), tensors


def results(function, arguments, tensors):
    y, last = function(*arguments)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    grads = torch.autograd.grad((y * weight).sum() + last.square().sum(), tensors)
    return [y, last, *grads]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 21])
def test_the_mapping_is_exact(case, length):
    twin = Recurrence(LITERAL, rows=torch.float64, accumulate=torch.float64, device="cpu")
    for function in (recur_scan, recur):
        for own, expected in zip(
            results(twin, *inputs(case, length)), results(function, *inputs(case, length)), strict=True
        ):
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_without_a_state_before(case):
    twin = Recurrence(LITERAL, rows=torch.float64, accumulate=torch.float64, device="cpu")
    arguments, _ = inputs(case)
    for own, expected in zip(twin(*arguments[:5]), recur(*arguments[:5]), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)


def test_rows_are_bfloat16_and_states_float32():
    seen = {}

    def spy(q, k, v, p, g, beta, **shared):
        seen.update(q=q.dtype, v=v.dtype, p=p.dtype, g=g.dtype, state=shared["initial_state"].dtype)
        return comba(*(x.float() for x in (q, k, v, p)), g, beta, **shared)

    twin = Recurrence(Functions(simple_gla, spy, rwkv7), device="cpu")
    arguments, _ = inputs("gated delta", dtype=torch.float32)
    y, last = twin(*arguments)
    assert seen == {**dict.fromkeys("qvp", torch.bfloat16), **dict.fromkeys(("g", "state"), torch.float32)}
    assert y.dtype == last.dtype == torch.float32
    torch.testing.assert_close(y, recur(*arguments)[0], rtol=0, atol=0.05)


def test_mistakes():
    with pytest.raises(InputError, match="kernel='flash' is unknown: choose one of chunk, fla"):
        recurrence("flash")
    assert recurrence("chunk") is recur
    arguments, _ = inputs("adds")
    with pytest.raises(InputError, match="runs on cuda, but the model is on cpu: move it, or use kernel='chunk'"):
        Recurrence(LITERAL)(*arguments)
    with pytest.raises(InputError, match="no transposed reads"):
        Recurrence(LITERAL, device="cpu")(*arguments, transposed=True)


def test_refused_where_the_device_or_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device, and there is none: use kernel='chunk'"):
        recurrence("fla")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "fla", None)
    with pytest.raises(InputError, match="needs the package fla-core"):
        recurrence("fla")


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("fla") is None, reason="needs CUDA and fla-core"
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 63, 200])
def test_the_kernels_themselves(case, length):
    """No worse than bfloat16 rows allow: errors against float64 as shares of the largest value."""
    size = {"length": length, "device": "cuda", "width": 32}
    own = results(Recurrence(functions()), *inputs(case, dtype=torch.float32, **size))
    exact = results(recur_scan, *inputs(case, **size))
    for found, expected in zip(own, exact, strict=True):
        assert (found.double() - expected).abs().max() < 0.03 * expected.abs().max()
