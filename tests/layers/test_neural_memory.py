"""Neural memories as mixers: every switch, every head's gradient, bf16, levels, and long streams."""

import math

import pytest
import torch

from nestling.errors import InputError
from nestling.layers.neural_memory import NeuralMemory
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.omega import Omega
from nestling.models.registry import configuration

D, HEADS, LENGTH = 16, 2, 23
LONG, PIECE = 16384, 512
MODELS = ("dla", "memora", "moneta", "titans-lmm", "yaad")
SWITCHES = {
    "boundary": ("titans-lmm", {"memory_read": "boundary"}),
    "previous": ("titans-lmm", {"memory_read": "previous"}),
    "anchor zero": ("titans-lmm", {"memory_anchor": "zero"}),
    "no momentum": ("titans-lmm", {"memory_momentum": "none"}),
    "momentum of the letter": ("titans-lmm", {"memory_momentum": "letter"}),
    "p": ("moneta", {"memory_p": 2.0}),
    "q": ("moneta", {"memory_q": 2.0}),
    "chunks": ("yaad", {"chunk_size": 8}),
}


def mixer(name, **fields):
    shape = {"hidden_size": D, "num_attention_heads": HEADS, "chunk_size": 4, "memory_expansion": 2}
    torch.manual_seed(0)
    return configuration(name, **shape | fields).mixer(0)


@pytest.mark.parametrize("name", MODELS)
def test_every_head_and_gate_learns(name):
    layer = mixer(name)
    y, state = layer(torch.randn(2, LENGTH, D))
    assert state is None
    y.square().sum().backward()
    for weight in layer.initial:
        assert (weight.grad.abs().flatten(1).amax(-1) > 0).all()
    bias = layer.gates.bias.grad
    assert bias.isfinite().all()
    assert (bias != 0).all()


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_does_something(name):
    model, fields = SWITCHES[name]
    x = torch.randn(1, LENGTH, D, generator=torch.Generator().manual_seed(1))
    plain, switched = mixer(model), mixer(model, **fields)
    given = plain.state_dict()
    switched.load_state_dict({key: given[key][: value.shape[0]] for key, value in switched.state_dict().items()})
    with torch.no_grad():
        assert not torch.allclose(plain(x)[0], switched(x)[0], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_bf16_parameters_and_autocast_are_finite(name):
    x = torch.randn(2, LENGTH, D)
    for layer, inputs in ((mixer(name).bfloat16(), x.bfloat16()), (mixer(name), x)):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(inputs, keep=True)
        y.float().square().sum().backward()
        assert y.isfinite().all()
        assert state["current0"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_weights_start_at_the_scale_of_linear_layers(name):
    layer = mixer(name, hidden_size=64, memory_expansion=4)
    for weight, gain in zip(layer.initial, (layer.readout, 1.0), strict=True):
        linked = layer.memory.retention.link(weight)
        spread = (linked - linked.mean(-1, keepdim=True)).square().mean().sqrt() * math.sqrt(weight.shape[-1])
        assert 0.8 * gain < spread < 2 * gain


def streams(length):
    """Random, repeated, alternating and slowly turning rows (4, length, 32)."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q.T * math.sqrt(32)
    angle = torch.arange(length)[:, None] * 2 * math.pi / 4096
    turning = angle.cos() * one + angle.sin() * other
    alternating = torch.where(torch.arange(length)[:, None] % 2 == 0, one, other)
    return torch.stack([torch.randn(length, 32, generator=generator), one.expand(length, -1), alternating, turning])


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_alive_and_bounded_over_16k_tokens(name):
    """Heads: as they start; the largest step; no forgetting; both."""
    layer = mixer(name, hidden_size=32, num_attention_heads=4, chunk_size=32)
    eta, alpha = layer.gates.bias[:4], layer.gates.bias[4:8]
    eta[1] = alpha[2] = eta[3] = alpha[3] = 1e3
    x, state = streams(LONG), None
    largest = torch.zeros(2, 4)
    for start in range(0, LONG, PIECE):
        before, (y, state) = state, layer(x[:, start : start + PIECE], state, keep=True)
        assert y.isfinite().all()
        weights = [layer.memory.retention.link(w + state[f"current{i}"]) for i, w in enumerate(layer.initial)]
        sizes = [w.flatten(2).norm(dim=-1).amax(0) for w in weights]
        largest = torch.maximum(largest, torch.stack(sizes))
    start = torch.stack([layer.memory.retention.link(w).flatten(1).norm(dim=-1) for w in layer.initial])
    # Values of the dot product add up, as in linear attention: only forgetting bounds them.
    growth = largest / start
    assert growth[:, :2].max() < (200 if name == "dla" else 6)
    assert name == "dla" or growth.max() < 60
    for i, weight in enumerate(layer.initial):
        moved = state[f"current{i}"].flatten(2).norm(dim=-1) / weight.flatten(1).norm(dim=-1)
        assert moved.min() > 1e-3
    changed = x[:, -PIECE:].clone()
    changed[:, -65] *= -1
    other, _ = layer(changed, before)
    assert ((other - y)[:, -1].abs().amax(-1) > 1e-4 * y.std()).all()


def test_the_state_has_one_size_whatever_the_length():
    layer = mixer("titans-lmm")
    sizes = {
        sum(w.nbytes for key, w in layer(torch.randn(1, length, D), keep=True)[1].items() if key != "conv")
        for length in (1, 4, 40)
    }
    assert len(sizes) == 1


def test_levels_name_the_chunk_length():
    window, momentum, content = mixer("titans-lmm").components()
    assert (window.period, momentum.period, content.period) == (1, 4, 4)
    assert content.parameters == momentum.parameters == HEADS * 2 * 2 * (D // HEADS) ** 2
    assert content.needs == (momentum.name,)
    assert [one.name for one in mixer("dla").components()] == [window.name, content.name]


def test_mistakes():
    with pytest.raises(InputError, match="chunk_size=0 must be at least 1"):
        configuration("dla", chunk_size=0)
    with pytest.raises(InputError, match="memory_momentum 'maybe' is unknown"):
        configuration("titans-lmm", memory_momentum="maybe")
    with pytest.raises(InputError, match="use read='boundary'"):
        configuration("moneta", memory_read="causal")
    with pytest.raises(InputError, match="is not offered for batches"):
        NeuralMemory(D, HEADS, 8, Memory(rules=(Omega(2), GD())))
