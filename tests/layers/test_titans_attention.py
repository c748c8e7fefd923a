"""Titans' MAC, MAG and MAL: against their formulas token by token, in any ragged pieces, as one graph, and reach."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from nestling.errors import InputError
from nestling.layers.attention import rotate
from nestling.memory.scan import scan
from nestling.memory.structure import fixed
from nestling.models.registry import configuration

D, HEADS, WIDTH, P = 16, 2, 8, 2
NAMES = ("titans-mac", "titans-mag", "titans-mal")
SHAPES = {
    "mac": ("titans-mac", {"segment_size": 8}),
    "mac, segments across chunks": ("titans-mac", {"segment_size": 6}),
    "mac, segments inside a chunk": ("titans-mac", {"segment_size": 3, "memory_anchor": "zero"}),
    "mac of one token, without momentum": ("titans-mac", {"segment_size": 1, "memory_momentum": "none"}),
    "mag": ("titans-mag", {"sliding_window": 5}),
    "mag, boundary": ("titans-mag", {"sliding_window": 1, "memory_read": "boundary", "persistent_tokens": 4}),
    "mal": ("titans-mal", {"sliding_window": 5}),
    "mal, all in the window": ("titans-mal", {"sliding_window": 50, "persistent_tokens": 1}),
}


def tables(length, width, theta, device):
    """Angles in float64, where the layers' are float32."""
    angle = torch.arange(length, dtype=torch.float64)[:, None] * theta ** (-torch.arange(0, width, 2).double() / width)
    return torch.cat((angle.cos(),) * 2, -1), torch.cat((-angle.sin(), angle.sin()), -1)


@pytest.fixture
def exact(monkeypatch):
    for module in ("attention", "titans_context"):
        monkeypatch.setattr(f"nestling.layers.{module}.angles", tables)


def make(name, **fields):
    torch.manual_seed(0)
    shape = {"hidden_size": D, "num_attention_heads": HEADS, "memory_expansion": 2}
    layer = configuration(name, **shape | {"chunk_size": 4, "persistent_tokens": P} | fields).mixer(0).double()
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


class Taps:
    """A short convolution, a row at a time."""

    def __init__(self, conv):
        self.conv, self.window = conv, [torch.zeros(conv.weight.shape[0], dtype=torch.float64)] * conv.width

    def __call__(self, row):
        self.window = [*self.window[1:], row]
        return functional.silu((torch.stack(self.window, -1) * self.conv.weight).sum(-1))


class Scanned:
    """A neural memory over one sequence, a row at a time, by the definition."""

    def __init__(self, layer):
        self.layer, self.memory, self.taps = layer, layer.memory, Taps(layer.conv)
        self.state = self.memory.init_state(list(layer.initial))

    def __call__(self, row):
        layer = self.layer
        rows, gate = (layer.project.weight @ row).tensor_split([3 * D])
        q, k, v = self.taps(rows).view(3, HEADS, 1, WIDTH)
        gates = dict(zip(layer.gated, (layer.gates.weight @ row + layer.gates.bias).view(-1, HEADS, 1), strict=True))
        eta, alpha = functional.softplus(gates["eta"]), gates["alpha"].sigmoid()
        beta = gates["beta"].sigmoid() if "beta" in gates else None
        y, self.state = scan(self.memory, self.state, unit_length(q), unit_length(k), v, eta, alpha, beta)
        if layer.output is None:
            return y.flatten()
        return layer.output.weight @ (layer.norm(y.squeeze(1)).flatten() * functional.silu(gate))

    def reader(self):
        """The memory as it stands: heads of queries (H, d) -> (H, d)."""
        linears = fixed(self.memory.weights(self.state, self.state.current))
        return lambda q: self.memory.structure.forward(linears, q.unsqueeze(1)).squeeze(1)


def unit_length(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def turned(x, position):
    """Heads (H, d) at a rotary position."""
    return rotate(x, tuple(table[position] for table in tables(position + 1, WIDTH, 1e4, None)))


def attended(query, pairs):
    """Softmax attention of heads (H, d): `pairs` of (query's version, key, value)."""
    scores = torch.stack([(query[version] * key).sum(-1) for version, key, _ in pairs]) / math.sqrt(WIDTH)
    return (scores.softmax(0)[..., None] * torch.stack([value for _, _, value in pairs])).sum(0).flatten()


def heads(linear, row):
    return (linear.weight @ row).view(HEADS, WIDTH)


def windowed(attention, rows):
    """Attention of every row (T, D) over the persistent tokens and its window."""
    front = [("plain", heads(attention.key, p), heads(attention.value, p)) for p in attention.persistent]
    pairs = [("turned", turned(heads(attention.key, x), t), heads(attention.value, x)) for t, x in enumerate(rows)]
    for t, row in enumerate(rows):
        query = heads(attention.query, row)
        seen = pairs[max(0, t + 1 - attention.window) : t + 1]
        yield attention.output(attended({"plain": query, "turned": turned(query, t)}, [*front, *seen]))


def mac(layer, x):
    memory, taps = Scanned(layer.memory), Taps(layer.conv)

    def pair(row, position):
        key, value = (layer.context.weight @ row).view(2, HEADS, WIDTH)
        return "turned", turned(key, position), value

    count = len(layer.persistent)
    front = [pair(p, i) for i, p in enumerate(layer.persistent)]
    for t, row in enumerate(x):
        place = t % layer.size
        if place == 0:
            past, segment = memory.reader(), []
        asked = unit_length(taps(layer.recall.weight @ row).view(HEADS, WIDTH))
        h = layer.norms["h"](past(asked).flatten())
        segment += [pair(h, count + place), pair(row, count + layer.size + place)]
        query = {"turned": turned(heads(layer.query, row), count + layer.size + place)}
        y = layer.norms["y"](attended(query, [*front, *segment]))
        yield layer.output.weight @ (y * functional.silu(layer.norms["gate"](memory(y))))


def mag(layer, x):
    memory = Scanned(layer.memory)
    for p in layer.attention.persistent:
        memory(p)
    for row, y in zip(x, windowed(layer.attention, x), strict=True):
        one, other = (norm(z) for norm, z in zip(layer.norms, (y, memory(row)), strict=True))
        yield layer.output.weight @ (one * functional.silu(other))


def mal(layer, x):
    memory = Scanned(layer.memory)
    for p in layer.attention.persistent:
        memory(p)
    yield from windowed(layer.attention, [layer.norm(row + memory(row)) for row in x])


FORMULAS = {"titans-mac": mac, "titans-mag": mag, "titans-mal": mal}


@pytest.mark.parametrize("length", [1, 8, 19])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("exact")
def test_equals_the_formulas(shape, length):
    name, fields = SHAPES[shape]
    layer, x = make(name, **fields), torch.randn(2, length, D, dtype=torch.float64, requires_grad=True)
    y, state = layer(x)
    assert state is None
    expected = torch.stack([torch.stack(list(FORMULAS[name](layer, row))) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    leaves, weight = [x, *layer.parameters()], torch.randn_like(y)
    options = {"allow_unused": True, "materialize_grads": True}  # a first token uses no decay and no momentum
    grads = [torch.autograd.grad((z * weight).sum(), leaves, **options) for z in (y, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 11)), min_size=1, max_size=4))
@torch.no_grad()
def test_ragged_pieces_equal_rows_alone(shape, sizes):
    name, fields = SHAPES[shape]
    layer, x = make(name, **fields), torch.randn(2, 44, D, dtype=torch.float64)
    state, at, got = None, [0, 0], [[], []]
    for lengths in sizes:
        piece = torch.full((2, max(lengths) + 1, D), 7.0, dtype=torch.float64)
        for b in range(2):
            piece[b, : lengths[b]] = x[b, at[b] : at[b] + lengths[b]]
        y, state = layer(piece, state, torch.tensor(lengths), keep=True)
        assert y.isfinite().all()
        for b in range(2):
            got[b].append(y[b, : lengths[b]])
            at[b] += lengths[b]
    for b in range(2):
        if at[b]:
            whole, _ = layer(x[b : b + 1, : at[b]])
            torch.testing.assert_close(torch.cat(got[b]), whole[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_state_stops_growing(name):
    layer, sizes = make(name, **{"segment_size" if name == "titans-mac" else "sliding_window": 8}), {}
    state = None
    for t in range(1, 41):
        _, state = layer(torch.randn(2, 1, D, dtype=torch.float64), state, keep=True)
        sizes[t] = sum(leaf.nbytes for leaf in leaves(state))
    assert max(sizes.values()) == max(sizes[t] for t in range(1, 10))
    assert sizes[24] == sizes[32] == sizes[40]


def leaves(state):
    for leaf in state.values():
        yield from leaves(leaf) if isinstance(leaf, dict) else [leaf]


@pytest.mark.parametrize("name", NAMES)
def test_persistent_tokens_are_seen_from_afar(name):
    """By attention itself, not only by way of what the memory has read of them."""
    layer = make(name)
    _, state = layer(torch.randn(1, 200, D, dtype=torch.float64), keep=True)
    state = {key: detached(leaf) for key, leaf in state.items()}
    y, _ = layer(torch.randn(1, 1, D, dtype=torch.float64), state)
    tokens = layer.persistent if name == "titans-mac" else layer.attention.persistent
    (grad,) = torch.autograd.grad(y.square().sum(), tokens)
    assert (grad.abs().amax(-1) > 0).all()


def detached(state):
    return {key: detached(leaf) for key, leaf in state.items()} if isinstance(state, dict) else state.detach()


def test_several_segments_compile_as_one_graph():
    layer, x = make("titans-mac", segment_size=1, chunk_size=2), torch.randn(2, 3, D, dtype=torch.float64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], layer(x)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_keeps_the_memory_in_float32(name):
    layer, x = make(name), torch.randn(2, 9, D)
    y, state = layer.bfloat16()(x.bfloat16(), keep=True)
    assert y.dtype == torch.bfloat16
    assert state.get("memory", state)["current0"].dtype == torch.float32
    layer = make(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x, keep=True)
    assert state.get("memory", state)["current0"].dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x)[0], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_persistent_tokens_are_not_decayed(name):
    exempt = {key for key, p in make(name).named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert {key for key in exempt if "memory." not in key} == {
        "persistent" if name == "titans-mac" else "attention.persistent"
    }


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_do_not_fit(name):
    for field in ("persistent_tokens", "segment_size" if name == "titans-mac" else "sliding_window"):
        with pytest.raises(InputError, match=f"{field}=0 must be at least 1"):
            configuration(name, **{field: 0})
    with pytest.raises(InputError, match="multiple of twice num_attention_heads"):
        configuration(name, hidden_size=12, num_attention_heads=4).mixer(0)
