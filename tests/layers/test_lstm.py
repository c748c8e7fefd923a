"""The LSTM is its equations, torch's module with the same weights, and deaf to padding."""

import torch
from torch import nn

from nestling.layers.lstm import LSTM

D, LENGTH = 6, 19


def mixer():
    torch.manual_seed(0)
    return LSTM(D).double()


def definition(layer, x, h, c):
    """One sequence (T, D), token by token: outputs and the state."""
    outputs = []
    for token in x:
        gates = layer.input_weight @ token + layer.state_weight @ h + layer.bias
        i, f, g, o = gates.split(D)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(layer.output(h))
    return torch.stack(outputs), h, c


def outcome(layer, y, h, c):
    layer.zero_grad()
    (y.square().sum() + h.sum() + c.square().sum()).backward()
    return [y, h, c, *(parameter.grad.clone() for parameter in layer.parameters())]


def test_values_and_gradients_are_those_of_the_definition():
    layer, x = mixer(), torch.randn(2, LENGTH, D, dtype=torch.float64)
    before = {name: torch.randn(2, D, dtype=torch.float64) for name in "hc"}
    y, state = layer(x, before, keep=True)
    fast = outcome(layer, y, state["h"], state["c"])
    slow = [definition(layer, *rows) for rows in zip(x, before["h"], before["c"], strict=True)]
    for a, b in zip(fast, outcome(layer, *map(torch.stack, zip(*slow, strict=True))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_padding_is_never_seen():
    """Not even by the cell, whose state the kernel gives at the end of the padding only."""
    layer, x = mixer(), torch.randn(3, LENGTH, D, dtype=torch.float64) * 5
    lengths, before = [LENGTH, 4, 0], {name: torch.randn(3, D, dtype=torch.float64) for name in "hc"}
    y, state = layer(x, before, torch.tensor(lengths), keep=True)
    assert y.isfinite().all()
    (state["c"].sum() + state["h"].sum()).backward()
    assert all(p.grad.isfinite().all() for p in (layer.input_weight, layer.state_weight, layer.bias))
    for b, real in enumerate(lengths):
        row = {name: value[b] for name, value in before.items()}
        if real:
            alone, *end = definition(layer, x[b, :real], **row)
            torch.testing.assert_close(y[b, :real], alone)
            row = dict(zip("hc", end, strict=True))
        for name in "hc":
            torch.testing.assert_close(state[name][b], row[name], rtol=1e-12, atol=1e-14)


def test_padding_keeps_the_cell_to_the_last_bit_in_float32():
    layer, before = LSTM(D), {name: torch.randn(2, D) for name in "hc"}
    _, state = layer(torch.randn(2, 40, D) * 100, before, torch.tensor([0, 0]), keep=True)
    assert torch.equal(state["c"], before["c"])
    assert torch.equal(state["h"], before["h"])


def test_it_is_torchs_module():
    layer, peer = mixer(), nn.LSTM(D, D, batch_first=True).double()
    with torch.no_grad():
        peer.weight_ih_l0.copy_(layer.input_weight)
        peer.weight_hh_l0.copy_(layer.state_weight)
        peer.bias_ih_l0.copy_(layer.bias)
        peer.bias_hh_l0.zero_()
    x = torch.randn(2, LENGTH, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], layer.output(peer(x)[0]), rtol=1e-12, atol=1e-14)


def test_start_precision_and_size():
    layer = LSTM(D)
    assert torch.equal(layer.bias, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(D))
    for rows, one in ((torch.randn(2, LENGTH, D).bfloat16(), LSTM(D).bfloat16()), (torch.randn(2, LENGTH, D), layer)):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = one(rows, keep=True)
        y.float().square().sum().backward()
        assert state["c"].dtype == state["h"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in one.parameters())
    (memory,) = layer.components()
    assert (memory.name, memory.period, memory.parameters) == ("LSTM state", 1, 2 * D)
