"""TTT layers: against the definition with sequences that stand apart, place by place, bf16."""

import pytest
import torch

from nestling.layers.attention import rotary, rotate
from nestling.layers.ttt import MEMORY
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.normed import EPS, Normed
from nestling.memory.scan import scan
from nestling.models.registry import configuration

D, HEADS, CHUNK = 16, 2, 4


@pytest.fixture(params=["ttt-linear", "ttt-mlp"])
def layer(request):
    torch.manual_seed(0)
    layer = configuration(request.param, hidden_size=D, num_attention_heads=HEADS, chunk_size=CHUNK).mixer(0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def define(layer, x):
    """One sequence x (T, D), token by token through the definition; everything around it written out anew."""
    length = len(x)
    rows, value, gate = layer.project(x).split(D, -1)
    padded = torch.cat((rows.new_zeros(3, D), rows))
    taps = torch.stack([padded[i : i + length] for i in range(4)], -1)
    query, key = (
        rotate_by_place((taps * conv.weight).sum(-1) + conv.bias, layer) for conv in (layer.conv_query, layer.conv_key)
    )
    q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(0, 1) for z in (query, key, value))
    eta = (torch.sigmoid(layer.rate(x)) / (D // HEADS)).T * (1.0 if len(layer.initial) == 1 else 0.1)
    share = (1 / torch.arange(1, CHUNK + 1, dtype=x.dtype) + layer.offset).clamp(min=0)
    structure = Normed(layer.gain, layer.bias, len(layer.initial))
    memory = Memory(structure, rules=(GD(),) * len(layer.initial), chunk_size=CHUNK)
    y, _ = scan(memory, memory.init_state(list(layer.initial)), q, k, v, eta, torch.ones_like(eta), share=share)
    y = torch.nn.functional.layer_norm(y.transpose(0, 1).flatten(1), (D,), layer.norm.weight, layer.norm.bias, EPS)
    return (y * torch.nn.functional.gelu(gate, approximate="tanh")) @ layer.output.weight.T


def rotate_by_place(rows, layer):
    """Rotary positions t mod C."""
    heads = rows.unflatten(-1, (HEADS, -1))
    cosine, sine = rotary(None, CHUNK, D // HEADS, layer.theta, rows.device)
    place = torch.arange(len(rows)) % CHUNK
    return rotate(heads[None], (cosine[place], sine[place]))[0].flatten(1)


def gradients(y, layer):
    return torch.autograd.grad(y, list(layer.parameters()))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("length", [4, 11, 16])
def test_equals_the_definition(layer, length):
    x = torch.randn(2, length, D, dtype=torch.float64)
    y, state = layer(x)
    assert state is None
    expected = torch.stack([define(layer, row) for row in x])
    close(y, expected)
    weight = torch.randn_like(y)
    for a, b in zip(gradients((y * weight).sum(), layer), gradients((expected * weight).sum(), layer), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    "calls",
    [
        [(6, [6, 3, 0, 5])],
        [(5, [5, 5, 5, 5]), (7, [7, 7, 7, 7]), (1, [1, 1, 1, 1])],
        [(9, [9, 2, 4, 8]), (6, [0, 6, 1, 4]), (3, [3, 1, 2, 3])],
        [(2, [1, 2, 1, 1]), (1, [1, 1, 0, 1]), (1, [1, 0, 1, 1]), (10, [10, 9, 4, 8])],
    ],
)
def test_sequences_that_stand_apart_equal_the_definition(layer, calls):
    """Every call (T, lengths) is padded; each sequence must give what it gives alone, gradients included."""
    torch.manual_seed(1)
    state, outputs, inputs = None, [[] for _ in range(4)], [[] for _ in range(4)]
    for length, lengths in calls:
        x = torch.randn(4, length, D, dtype=torch.float64)
        y, state = layer(x, state, torch.tensor(lengths), keep=True)
        for b, n in enumerate(lengths):
            outputs[b].append(y[b, :n])
            inputs[b].append(x[b, :n])
    found = torch.cat([torch.cat(parts) for parts in outputs])
    alone = torch.cat([define(layer, torch.cat(parts)) for parts in inputs if sum(map(len, parts))])
    close(found, alone)
    assert state["count"].tolist() == [sum(len(part) for part in parts) for parts in inputs]
    weight = torch.randn_like(found)
    for a, b in zip(gradients((found * weight).sum(), layer), gradients((alone * weight).sum(), layer), strict=True):
        close(a, b)


def test_padding_writes_nothing(layer):
    x = torch.randn(2, 7, D, dtype=torch.float64)
    other = torch.where((torch.arange(7) < torch.tensor([[7], [3]]))[..., None], x, 1e3)
    lengths = torch.tensor([7, 3])
    for key, value in layer(x, None, lengths, True)[1].items():
        again = layer(other, None, lengths, True)[1][key]
        assert torch.equal(value["rows"], again["rows"]) if key == "conv" else torch.equal(value, again)


def test_a_share_below_zero_reads_and_keeps_nothing(layer):
    x = torch.randn(1, 3 * CHUNK, D, dtype=torch.float64)
    with torch.no_grad():
        layer.offset.fill_(-2)
        state = layer(x, keep=True)[1]
    assert all(torch.equal(state[f"boundary{i}"][0], weight) for i, weight in enumerate(layer.initial))


def test_bf16_parameters_and_autocast_are_finite(layer):
    x = torch.randn(2, 11, D)
    for inputs, dtype in ((x.bfloat16(), torch.bfloat16), (x, torch.float32)):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer.to(dtype)(inputs, keep=True)
        layer.zero_grad()
        y.float().square().sum().backward()
        assert y.isfinite().all()
        assert state["boundary0"].dtype == state["written0"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_state_has_one_size_whatever_the_length(layer):
    sizes = set()
    for length in (1, CHUNK, 40):
        state = layer(torch.randn(1, length, D, dtype=torch.float64), keep=True)[1]
        sizes.add(sum(value.nbytes for key, value in state.items() if key != "conv"))
    assert len(sizes) == 1


def test_levels_name_the_mini_batch(layer):
    window, memory = layer.components()
    assert (window.period, memory.period, memory.name) == (1, CHUNK, MEMORY)
    assert memory.parameters == sum(weight.numel() for weight in layer.initial)
