"""The self-referential matrix as a mixer: the paper's equations with a matrix a head, and its start."""

import torch

from nestling.layers.srwm import SelfReferentialMatrix

D, HEADS, WIDTH, LENGTH = 12, 3, 4, 17


def mixer():
    torch.manual_seed(0)
    return SelfReferentialMatrix(D, HEADS).double()


def definition(layer, x):
    """One sequence (T, D), written as in the paper: matrices times columns, head by head."""
    outputs = []
    for head in range(HEADS):
        W, own = layer.initial[head].mT, []
        for token in x[:, head * WIDTH : (head + 1) * WIDTH]:
            y, k, q, b = (W @ token.softmax(0)).split([WIDTH, WIDTH, WIDTH, 4])
            old, new = W @ k.softmax(0), W @ q.softmax(0)
            rate = torch.cat([b.sigmoid()[i].expand(n) for i, n in enumerate((WIDTH, WIDTH, WIDTH, 4))])
            W = W + torch.outer(rate * (new - old), k.softmax(0))
            own.append(y)
        outputs.append(torch.stack(own))
    return layer.output(torch.cat(outputs, -1))


def test_the_mixer_is_the_papers():
    layer, x = mixer(), torch.randn(2, LENGTH, D, dtype=torch.float64)
    found = []
    for y in (layer(x)[0], torch.stack([definition(layer, row) for row in x])):
        layer.zero_grad()
        y.square().sum().backward()
        found.append([y, layer.initial.grad, layer.output.weight.grad])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-13)


def test_padding_and_cuts():
    layer, x = mixer(), torch.randn(2, LENGTH, D, dtype=torch.float64)
    _, state = layer(x[:, :8], lengths=torch.tensor([8, 3]), keep=True)
    y, _ = layer(x[:, 8:], state)
    for b, real in enumerate((8, 3)):
        alone = layer(torch.cat((x[b, :real], x[b, 8:]))[None])[0]
        torch.testing.assert_close(y[b], alone[0, real:], rtol=1e-11, atol=1e-13)


def test_bf16_and_autocast_keep_the_matrices_in_float32():
    x = torch.randn(2, LENGTH, D)
    for layer, rows in ((mixer().bfloat16(), x.bfloat16()), (mixer().float(), x)):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(rows, keep=True)
        y.float().square().sum().backward()
        assert state["deviation"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_start_and_size():
    layer = SelfReferentialMatrix(128, 4)
    assert abs(layer.initial.detach().std() - 32**-0.5) < 0.01
    (memory,) = layer.components()
    assert (memory.period, memory.parameters) == (1, 4 * 32 * 100)
