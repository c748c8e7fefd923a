"""RWKV-7, Comba and OjaNet against their equations, token by token, and against the token-by-token recurrence."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, logsigmoid, normalize, softplus

from nestling.layers.comba import Comba
from nestling.layers.oja import OjaNet
from nestling.layers.recurrent import Recurrent
from nestling.layers.residual import Handed
from nestling.layers.rwkv import ChannelMix, TimeMix
from nestling.layers.shift import previous
from nestling.memory.memory import Memory
from nestling.memory.oja import Oja
from nestling.memory.recurrence import recur, recur_scan
from nestling.memory.retention import Decay
from nestling.memory.scan import scan
from nestling.memory.structure import Matrix

B, D, H = 2, 8, 2
WIDTH = D // H
MIXERS = {
    "rwkv-7 first": lambda: TimeMix(D, H, 0, 2),
    "rwkv-7 later": lambda: TimeMix(D, H, 1, 2),
    "comba": lambda: Comba(D, H, 0.4),
    "ojanet": lambda: OjaNet(D, H),
}


def made(name: str) -> nn.Module:
    """In float64, every parameter away from its start."""
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return mixer


def rows(length: int, seed: int = 1) -> Tensor:
    return torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(name: str, mixer: nn.Module, x: Tensor, *arguments) -> tuple:
    """The mixer's results; a later block of RWKV-7 is given rows of the first."""
    first = {"first": rows(400, seed=2)[:, : x.shape[1]]} if name == "rwkv-7 later" else {}
    return mixer(x, *arguments, **first)


@pytest.fixture(params=list(MIXERS))
def name(request):
    return request.param


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_token_by_token(name, length, padded, monkeypatch):
    """Values, states and gradients of everything, from a carried state."""
    found, lengths = [], torch.tensor([length, max(length - 7, 0)]) if padded else None
    for form in ("fast", "definition"):
        if form == "definition":
            definition = staticmethod(lambda *z, floor=None, **options: recur_scan(*z, **options))
            monkeypatch.setattr(Recurrent, "recur", definition)
        mixer, before = made(name), rows(5, seed=3)
        _, state, *_ = run(name, mixer, before, None, None, True)
        x = rows(length).requires_grad_()
        y, state, *_ = run(name, mixer, x, state, lengths, True)
        real = torch.ones(B, length, 1) if lengths is None else (torch.arange(length) < lengths[:, None])[..., None]
        memory = state["memory"]
        ((y * real).square().sum() + memory.square().sum()).backward()
        grads = [parameter.grad for parameter in mixer.parameters() if parameter.grad is not None]
        found.append([y * real, memory, x.grad, *grads])
    for fast, definition in zip(*found, strict=True):
        torch.testing.assert_close(fast, definition, rtol=1e-9, atol=1e-11)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (H, WIDTH))


@torch.no_grad()
@pytest.mark.parametrize("name", ["rwkv-7 first", "rwkv-7 later"])
def test_the_equations_of_rwkv(name):
    m, x, first = made(name), rows(9), rows(400, seed=2)
    got = run(name, m, x)
    S, last = torch.zeros(B, H, WIDTH, WIDTH, dtype=x.dtype), torch.zeros(B, D, dtype=x.dtype)
    for t in range(9):
        now = x[:, t]
        r, w, k, v, a, g = (now + (last - now) * mix for mix in m.mix)
        r, k, value = m.receptance(r), m.key(k), m.value(v)
        decay = torch.exp(-(-softplus(-m.decay.up(m.decay.down(w).tanh())) - 0.5).exp())
        if m.residual is None:
            torch.testing.assert_close(got[2].later[:, t], value)
        else:
            value = value + (first[:, t] - value) * m.residual.up(m.residual.down(v)).sigmoid()
        a, g = m.rate.up(m.rate.down(a)).sigmoid(), m.gate.up(m.gate.down(g).sigmoid())
        khat = normalize(heads(k * m.removal), dim=-1)
        r, k, value, a, decay = map(heads, (r, k * (1 + (a - 1) * m.replacement), value, a, decay))
        erased = (S @ khat[..., None]) @ (a * khat)[..., None, :]
        S = S * decay[..., None, :] - erased + value[..., None] * k[..., None, :]
        y = group_norm((S @ r[..., None]).reshape(B, D), H, m.norm.weight, m.norm.bias, WIDTH * 1e-5)
        y = y + ((r * k * m.bonus).sum(-1, keepdim=True) * value).flatten(1)
        torch.testing.assert_close(got[0][:, t], m.output(y * g), rtol=1e-8, atol=1e-10)
        last = now


def test_values_of_the_first_block_are_handed_on_once():
    assert run("rwkv-7 first", made("rwkv-7 first"), rows(4))[2].later is not None
    assert run("rwkv-7 later", made("rwkv-7 later"), rows(4))[2] == Handed()


@torch.no_grad()
def test_the_channel_mix():
    m = ChannelMix(D, 12, 0, 2).double()
    nn.init.normal_(m.mix)
    x = rows(6)
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
    expected = m.output(m.up(x + (before - x) * m.mix).clamp(min=0) ** 2)
    torch.testing.assert_close(m(x)[0], expected)


def test_the_row_before_in_ragged_pieces():
    x, y = rows(5), rows(3, seed=4)
    _, state = previous(x, None, torch.tensor([5, 2]), True)
    assert torch.equal(state["row"][:, 0], torch.stack((x[0, 4], x[1, 1])))
    got, after = previous(y, state, torch.tensor([0, 3]), True)
    assert torch.equal(got, torch.cat((state["row"], y[:, :-1]), 1))
    assert torch.equal(after["row"][:, 0], torch.stack((x[0, 4], y[1, 2])))


def tokens(mixer, x: Tensor) -> tuple[Tensor, ...]:
    """Heads (B, H, T, d) of q, k, v behind the convolution, and alpha and beta (B, H, T)."""
    conv, _ = mixer.conv(mixer.project(x))
    q, k, v = (heads(z).transpose(1, 2) for z in conv.split(D, -1))
    a, b = (z.transpose(1, 2) for z in mixer.rates(x).split(H, -1))
    alpha = (-mixer.A_log.exp()[:, None] * softplus(a + mixer.dt_bias[:, None])).exp()
    return q, k, v, alpha, b.sigmoid()


def out(mixer, y: Tensor, x: Tensor, gate) -> Tensor:
    """What is made of the reads y (B, H, T, d)."""
    return mixer.output(mixer.norm(y.transpose(1, 2)).flatten(2) * gate(mixer.gate(x)))


def length_one(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


@torch.no_grad()
def test_the_equations_of_comba():
    m, x = made("comba"), rows(9)
    q, k, v, alpha, beta = tokens(m, x)
    b, d = (z[:, None, None] for z in (m.feedback.erase.sigmoid(), m.feedback.query))
    q, k = length_one(q - d * k) / WIDTH**0.5, length_one(k)
    S, reads = torch.zeros(B, H, WIDTH, WIDTH, dtype=x.dtype), []
    for t in range(9):
        key, bt = k[:, :, t, None, :], beta[:, :, t, None, None]
        moved = alpha[:, :, t, None, None] * torch.eye(WIDTH) - b * bt * key.mT @ key
        S = S @ moved + bt * v[:, :, t, :, None] @ key
        reads.append((S @ q[:, :, t, :, None]).squeeze(-1))
    torch.testing.assert_close(m(x)[0], out(m, torch.stack(reads, 2), x, torch.sigmoid), rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_ojanet_is_the_memory_with_ojas_rule():
    m, x = made("ojanet"), rows(9)
    q, k, v, alpha, eta = tokens(m, x)
    memory = Memory(Matrix(), rules=(Oja(),), retention=Decay("zero"), chunk_size=1)
    start = memory.init_state((torch.zeros(B, H, WIDTH, WIDTH, dtype=x.dtype),))
    reads, last = scan(memory, start, length_one(q) / WIDTH**0.5, length_one(k), length_one(v), eta, alpha)
    y, state = m(x, keep=True)
    torch.testing.assert_close(y, out(m, reads, x, lambda z: z * logsigmoid(z).exp()), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state["memory"].mT, last.current[0], rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_ojas_rule_stays_bounded():
    """The hardest case: no decay, the largest step, the same or opposite values and changing keys."""
    m = OjaNet(D, H)
    m.rates.weight.zero_()
    x = torch.randn(1, 4096, D)
    for sign in (1.0, -1.0):
        rate = torch.full((1, H, 4096), 1e4)
        v = torch.ones(1, H, 4096, WIDTH) * sign ** torch.arange(4096)[:, None] * 1e3
        given = m.tokens(torch.randn(1, H, 4096, WIDTH), heads(x).transpose(1, 2), v, -rate, rate)
        y, M = recur(given.q, given.k, given.v, given.log_alpha, (given.p, given.k), transposed=True)
        assert y.abs().max() < 1.01
        assert M.norm(dim=(-1, -2)).max() < 1.01
