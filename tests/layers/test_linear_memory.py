"""Mixers with one matrix a head: each against a literal loop of its own equations, and the frame that they share."""

import pytest
import torch
from torch.nn.functional import elu, normalize, pad, silu, softplus

from nestling.errors import InputError
from nestling.layers.attention import rotary, rotate
from nestling.layers.norm import RMSNorm
from nestling.layers.recurrent import Recurrent
from nestling.memory.recurrence import recur_scan
from nestling.models.registry import configuration

D, HEADS = 16, 2
KINDS = {
    "linear attention": ("linear-attention", {}),
    "linear attention, norm": ("linear-attention", {"sum_normalizer": False}),
    "linear attention, plain": ("linear-attention", {"sum_normalizer": False, "positive_features": False}),
    "retnet": ("retnet", {}),
    "deltanet": ("deltanet", {}),
    "deltanet, negative": ("deltanet", {"allow_neg_eigval": True}),
    "gated deltanet": ("gated-deltanet", {}),
    "gated deltanet, negative": ("gated-deltanet", {"allow_neg_eigval": True, "head_dim": 4, "value_expansion": 3}),
}


def mixer(kind, scale=0.3):
    """The mixer in float64, with weights large enough that all of it matters."""
    name, fields = KINDS[kind]
    torch.manual_seed(0)
    layer = configuration(name, hidden_size=D, num_attention_heads=HEADS, **fields).mixer(0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return layer


def tokens(length, batch=2):
    return torch.randn(batch, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def heads(rows, layer):
    q, k, v = rows.split([HEADS * n for n in layer.widths], -1)
    return [z.unflatten(-1, (HEADS, -1)) for z in (q, k, v)]


def convolved(rows, layer):
    """SiLU of the last four rows, weighted, token by token."""
    before = pad(rows, (0, 0, 3, 0))
    return torch.stack([silu((before[:, t : t + 4].mT * layer.conv.weight).sum(-1)) for t in range(rows.shape[1])], 1)


def rates(x, layer):
    return layer.rates(x).unflatten(-1, (-1, HEADS)).unbind(-2)


def root_mean_square(y, gain):
    return gain * y / (y.square().mean(-1, keepdim=True) + RMSNorm(1).eps).sqrt()


def run(start, step, q):
    """Reads of S = step(S, t), S (B, H, o, d), with q (B, T, H, d)."""
    reads, S = [], start
    for t in range(q.shape[1]):
        S = step(S, t)
        reads.append(torch.einsum("bhod,bhd->bho", S, q[:, t]))
    return torch.stack(reads, 1)


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def zero(q, v):
    return q.new_zeros(q.shape[0], HEADS, v.shape[-1], q.shape[-1])


def linear_attention(layer, x, kind):
    q, k, v = heads(layer.project(x), layer)
    q, k = (q, k) if "plain" in kind else (elu(q) + 1, elu(k) + 1)
    y = run(zero(q, v), lambda S, t: S + outer(v[:, t], k[:, t]), q)
    if kind == "linear attention":
        weights = torch.einsum("bthd,bthd->bth", q, k.cumsum(1))
        return y / (weights + 1e-6 * q.shape[-1] ** 0.5)[..., None]
    return root_mean_square(y * q.shape[-1] ** -0.5, layer.norm.weight)


def retnet(layer, x, kind):
    q, k, v = heads(layer.project(x), layer)
    tables = rotary(None, x.shape[1], q.shape[-1], 10000.0, x.device)
    q, k = rotate(q, tables), rotate(k, tables) * q.shape[-1] ** -0.5
    gamma = torch.tensor([1 - 2.0**-5, 1 - 2.0**-6], dtype=x.dtype)[:, None, None]
    y = run(zero(q, v), lambda S, t: gamma * S + outer(v[:, t], k[:, t]), q)
    return root_mean_square(y, 1) * silu(layer.gate(x)).unflatten(-1, (HEADS, -1))


def delta_rule(layer, x, kind):
    q, k, v = heads(convolved(layer.project(x), layer), layer)
    q, k = normalize(q, dim=-1), normalize(k, dim=-1)
    *a, b = rates(x, layer)
    beta = b.sigmoid() * (2 if "negative" in kind else 1)
    alpha = torch.exp(-layer.A_log.exp() * softplus(a[0] + layer.dt_bias)) if a else torch.ones_like(beta)

    def step(S, t):
        S = alpha[:, t, :, None, None] * S
        error = v[:, t] - torch.einsum("bhod,bhd->bho", S, k[:, t])
        return S + outer(beta[:, t, :, None] * error, k[:, t])

    y = root_mean_square(run(zero(q, v), step, q) * q.shape[-1] ** -0.5, layer.norm.weight)
    return y * silu(layer.gate(x)).unflatten(-1, (HEADS, -1)) if a else y


LITERAL = {"linear": linear_attention, "retnet": retnet, "deltanet": delta_rule, "gated": delta_rule}


@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_own_equations(kind):
    layer, x = mixer(kind), tokens(71)
    literal = layer.output(LITERAL[kind.split()[0].rstrip(",")](layer, x, kind).flatten(2))
    # Ours adds 1e-6 to the squared length where a key is made a unit.
    torch.testing.assert_close(layer(x)[0], literal, rtol=0, atol=1e-4 if "delta" in kind else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "cut"), [(1, None), (67, None), (67, 1), (130, 65)])
def test_equals_the_token_recurrence(kind, length, cut, monkeypatch):
    """Values, states and gradients; padded, and from a carried state."""
    found, lengths = [], torch.tensor([length, max(1, length - 9)])
    for form in (None, recur_scan):
        if form is not None:
            monkeypatch.setattr(Recurrent, "recur", staticmethod(form))
        layer, state, outputs, start = mixer(kind), None, [], 0
        x = tokens(length).requires_grad_()
        for stop in [length] if cut is None else [cut, length]:
            real = (lengths - start).clamp(0, stop - start)
            y, state = layer(x[:, start:stop], state, real, keep=True)
            outputs.append(y)
            start = stop
        y = torch.cat(outputs, 1)
        y[1, lengths[1] :] = 0
        ((y**2).sum() + state["memory"].sin().sum()).backward()
        found.append([y, state["memory"], x.grad, *(parameter.grad for parameter in layer.parameters())])
    for fast, definition in zip(*found, strict=True):
        torch.testing.assert_close(fast, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_and_autocast_keep_the_memory_in_float32(kind):
    for layer, x in ((mixer(kind).bfloat16(), tokens(23).bfloat16()), (mixer(kind).float(), tokens(23).float())):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(x, keep=True)
        y.float().square().sum().backward()
        assert y.isfinite().all()
        assert state["memory"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_gated_rule_starts_as_its_reference():
    torch.manual_seed(0)
    layer = configuration("gated-deltanet", hidden_size=2048, num_attention_heads=512).mixer(0)
    rate, step = layer.A_log.exp(), softplus(layer.dt_bias)
    assert 0 <= rate.min() < 0.5 < 15.5 < rate.max() <= 16
    assert 1e-3 - 1e-6 <= step.min() < 1.1e-3 < 0.09 < step.max() <= 0.1 + 1e-6
    torch.testing.assert_close(step.log().mean(), torch.tensor([1e-3, 1e-1]).log().mean(), rtol=0, atol=0.2)
    assert layer.A_log._no_weight_decay
    assert layer.dt_bias._no_weight_decay


@pytest.mark.parametrize("kind", KINDS)
def test_components_say_what_is_kept(kind):
    layer = mixer(kind)
    *window, memory = layer.components()
    assert [one.name for one in window] == (["short convolution"] if "delta" in kind else [])
    _, state = layer(tokens(5), keep=True)
    extra = HEADS * layer.widths[0] if kind == "linear attention" else 0
    assert state["memory"][0].numel() == memory.parameters + extra
    assert memory.period == 1


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("linear-attention", {"positive_features": False}, "set sum_normalizer=False"),
        ("retnet", {"hidden_size": 12, "num_attention_heads": 4}, "multiple of twice num_attention_heads"),
        ("retnet", {"value_expansion": 0}, "value_expansion=0 must be at least 1"),
        ("gated-deltanet", {"head_dim": 0}, "head_dim=0 must be at least 1"),
        ("gated-deltanet", {"hidden_size": 4, "num_attention_heads": 4}, "head_dim=0 must be at least 1"),
        ("gated-deltanet", {"value_expansion": -1}, "value_expansion=-1 must be at least 1"),
    ],
)
def test_mistakes(name, fields, message):
    with pytest.raises(InputError, match=message):
        configuration(name, **fields)
