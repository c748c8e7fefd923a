"""Attention against the formula written out, with windows, shared heads, ragged rows and any cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exact import same
from nestling.errors import InputError
from nestling.layers.attention import Attention, rotary, rotate


def make(**options):
    torch.manual_seed(0)
    return Attention(16, 4, **options).double()


def written_out(layer, x):
    """Softmax attention of one sequence (T, D), head by head, with complex rotations."""
    length, width = x.shape[0], layer.width
    angle = torch.arange(length)[:, None] * layer.theta ** (-torch.arange(0, width, 2).double() / width)
    turn = torch.polar(torch.ones_like(angle), angle)

    def heads(linear):
        return linear(x).unflatten(-1, (-1, width)).transpose(0, 1)

    def turned(z):
        z = torch.complex(z[..., : width // 2], z[..., width // 2 :]) * turn
        return torch.cat((z.real, z.imag), -1)

    query, key, value = turned(heads(layer.query)), turned(heads(layer.key)), heads(layer.value)
    out = []
    for head in range(layer.heads):
        group = head * layer.groups // layer.heads
        scores = query[head] @ key[group].T / width**0.5
        far = torch.arange(length)[:, None] - torch.arange(length)
        scores[(far < 0) | (far >= (layer.window or length))] = -torch.inf
        if layer.persistent is not None:
            own = (w[group * width : (group + 1) * width] for w in (layer.key.weight, layer.value.weight))
            front, contents = (layer.persistent @ w.T for w in own)
            plain = layer.query(x)[:, head * width : (head + 1) * width]
            scores = torch.cat((plain @ front.T / width**0.5, scores), -1)
            out.append(scores.softmax(-1) @ torch.cat((contents, value[group])))
        else:
            out.append(scores.softmax(-1) @ value[group])
    return layer.output(torch.cat(out, -1))


OPTIONS = [
    {},
    {"num_key_value_heads": 2},
    {"sliding_window": 3},
    {"sliding_window": 1, "num_key_value_heads": 1},
    {"persistent_tokens": 2},
    {"sliding_window": 3, "persistent_tokens": 1, "num_key_value_heads": 2},
]


@pytest.mark.paper("Eq. 62-63")
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_formula(options):
    layer, x = make(**options), torch.randn(2, 11, 16, dtype=torch.float64)
    y, state = layer(x)
    assert state is None
    for b in range(2):
        # The tables of angles are float32.
        torch.testing.assert_close(y[b], written_out(layer, x[b]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ragged_pieces_equal_rows_alone(options, data):
    layer, parts = make(**options), data.draw(st.integers(1, 4))
    sizes = [[data.draw(st.integers(1, 5)) for _ in range(2)] for _ in range(parts)]
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    state, at, got = None, [0, 0], [[], []]
    for lengths in sizes:
        piece = torch.full((2, max(lengths) + 1, 16), 7.0, dtype=torch.float64)
        for b in range(2):
            piece[b, : lengths[b]] = x[b, at[b] : at[b] + lengths[b]]
        y, state = layer(piece, state, torch.tensor(lengths), keep=True)
        assert torch.isfinite(y).all()
        for b in range(2):
            got[b].append(y[b, : lengths[b]])
            at[b] += lengths[b]
    for b in range(2):
        whole = layer(x[b : b + 1, : at[b]])[0][0]
        torch.testing.assert_close(torch.cat(got[b]), whole, atol=1e-6, rtol=1e-6)
    assert state["position"].tolist() == at
    if layer.window:
        assert state["k"].shape[1] <= layer.window - 1


@pytest.mark.parametrize("window", [1, 3, 4, 7])
@pytest.mark.parametrize("lengths", [None, [29, 12], [3, 5]])
@pytest.mark.parametrize("persistent", [0, 2])
def test_blocks_of_queries_change_nothing(window, lengths, persistent, monkeypatch):
    """From the start and from ragged rows, with padding that some blocks consist of."""
    layer = make(sliding_window=window, persistent_tokens=persistent)
    x = torch.randn(2, 29, 16, dtype=torch.float64)
    real = None if lengths is None else torch.tensor(lengths)
    _, ragged = layer(x[:, :9], None, torch.tensor([9, 2]), keep=True)
    found = []
    for block in (100, 4):
        monkeypatch.setattr("nestling.layers.attention.BLOCK", block)
        found.append([layer(x, state, real, keep=True) for state in (None, ragged)])
    for (whole, kept), (blocks, also) in zip(*found, strict=True):
        for b in range(2):
            until = 29 if lengths is None else lengths[b]
            torch.testing.assert_close(blocks[b, :until], whole[b, :until], atol=1e-12, rtol=1e-12)
        assert torch.isfinite(blocks).all()
        assert same(kept, also)


def test_a_window_costs_no_square_of_the_length():
    layer, sizes = Attention(16, 4, sliding_window=8), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nelement()) or x, lambda x: x):
        layer(torch.randn(1, 1024, 16))
    assert max(sizes) < 1024 * 64


def test_rotation_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8)
    dots = [
        (
            rotate(q, rotary(torch.tensor([p + 5]), 1, 8, 1e4, q.device))
            * rotate(k, rotary(torch.tensor([p]), 1, 8, 1e4, q.device))
        ).sum()
        for p in (0, 3, 500)
    ]
    torch.testing.assert_close(dots[0], dots[1])
    torch.testing.assert_close(dots[0], dots[2], atol=1e-4, rtol=1e-4)


def test_tables_made_while_generating_serve_training():
    layer = Attention(16, 2, rope_theta=123.0)
    with torch.inference_mode():
        layer(torch.randn(1, 4, 16))
    layer(torch.randn(1, 4, 16))[0].sum().backward()


def test_nothing_but_weights_is_saved():
    assert sorted(make().state_dict()) == ["key.weight", "output.weight", "query.weight", "value.weight"]


def test_widths_that_do_not_fit():
    with pytest.raises(InputError, match="multiple of twice"):
        Attention(12, 4)
    with pytest.raises(InputError, match="must divide"):
        Attention(16, 4, num_key_value_heads=3)
