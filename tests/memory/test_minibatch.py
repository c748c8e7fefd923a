"""Test-time training: the aligned chunks equal the definition, whose gradients are automatic ones."""

import pytest
import torch
from torch import Tensor

from memory.tables import close
from nestling.errors import InputError
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, State
from nestling.memory.minibatch import Chunks, run
from nestling.memory.normed import EPS, Normed, gelu_and_slope
from nestling.memory.objective import L2, Huber
from nestling.memory.parallel import chunked
from nestling.memory.scan import scan
from nestling.memory.structure import fixed, init

ROWS, D, HIDDEN, CHUNK = 3, 4, 6, 4


@pytest.fixture(params=[1, 2], ids=["linear", "mlp"])
def structure(request) -> Normed:
    return Normed(1 + 0.3 * torch.randn(ROWS, 1, D), 0.3 * torch.randn(ROWS, 1, D), request.param)


def memory(structure: Normed) -> Memory:
    return Memory(structure, rules=(GD(),) * structure.layers, chunk_size=CHUNK)


def data(structure: Normed, length: int) -> list[Tensor]:
    """Initial weights, q, k, v, eta, share, all with gradients."""
    weights = init(structure, D, D, HIDDEN, (ROWS,))
    rows = [torch.randn(ROWS, length, D) for _ in range(3)]
    found = [*weights, *rows, torch.rand(ROWS, length), 1 / torch.arange(1, CHUNK + 1) + 0.1 * torch.randn(CHUNK)]
    return [x.requires_grad_() for x in found]


def define(structure: Normed, weights: list[Tensor], q, k, v, eta, share) -> tuple[Tensor, State]:
    """The definition."""
    plain = memory(structure)
    return scan(plain, plain.init_state(weights), q, k, v, eta, torch.ones_like(eta), share=share)


def by_hand(structure: Normed, weights: list[Tensor], q, k, v, eta, share) -> Tensor:
    """Literally: at every token one gradient of the loss, by autograd, at the weights where the mini-batch began."""
    outputs, total = [], []
    for t in range(q.shape[1]):
        i = t % CHUNK
        if i == 0:
            if t:
                weights = [w + share[-1] * g for w, g in zip(weights, total, strict=True)]
            total = [torch.zeros_like(w) for w in weights]
        now = slice(t, t + 1)
        loss = 0.5 * (structure.forward(fixed(weights), k[:, now]) - v[:, now]).square().sum()
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        total = [g - eta[:, t, None, None] * new for g, new in zip(total, gradient, strict=True)]
        seen = [w + share[i] * g for w, g in zip(weights, total, strict=True)]
        outputs.append(structure.forward(fixed(seen), q[:, now]))
    return torch.cat(outputs, 1)


def chunks(q, k, v, eta, share, length: int, written=None, first: int = 0) -> Chunks:
    """All rows alike: `length` tokens from place `first` of a chunk."""
    n = -(-(first + length) // CHUNK)

    def cut(x: Tensor) -> Tensor:
        x = x[:, :length] if x.dim() == 3 else x[:, :length, None]
        x = torch.nn.functional.pad(x, (0, 0, first, n * CHUNK - first - length))
        return x.unflatten(1, (n, CHUNK)).transpose(0, 1)

    whole = (first + length) // CHUNK
    closed = (torch.arange(n) < whole).to(q)[:, None].expand(n, ROWS)
    return Chunks(cut(q), cut(k), cut(v), cut(eta).squeeze(-1), share, share[-1], closed, whole, whole, written)


def rows(y: Tensor, first: int, length: int) -> Tensor:
    return y.transpose(0, 1).flatten(1, 2)[:, first : first + length]


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    return list(torch.autograd.grad((y * weight).sum(), inputs))


def test_the_definition_takes_gradients_of_the_loss(structure: Normed) -> None:
    found = data(structure, 11)
    layers = structure.layers
    y, _ = define(structure, found[:layers], *found[layers:])
    close(y, by_hand(structure, found[:layers], *found[layers:]), 1e-12)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
def test_aligned_chunks_equal_the_definition(structure: Normed, length: int) -> None:
    found = data(structure, length)
    layers = structure.layers
    y, state = define(structure, found[:layers], *found[layers:])
    fast, weights, written = run(structure, L2(), found[:layers], chunks(*found[layers:], length))
    close(rows(fast, 0, length), y, 1e-12)
    used = found if length >= CHUNK else found[:-1]
    for a, b in zip(gradients(rows(fast, 0, length), used), gradients(y, used), strict=True):
        close(a, b, 1e-11)
    for layer in range(layers):
        whole = state.current[layer] if length % CHUNK else state.boundary[layer]
        start = state.initial[layer] + state.boundary[layer]
        if length % CHUNK:
            close(weights[layer], start, 1e-12)
            close(weights[layer] + written[layer], state.initial[layer] + whole, 1e-12)
        else:
            left = state.current[layer] - state.boundary[layer]
            close(weights[layer], start + found[-1][-1] * left, 1e-12)
            assert (written[layer] == 0).all()


@pytest.mark.parametrize("cut", [1, 4, 6, 9])
def test_from_a_carried_state(structure: Normed, cut: int) -> None:
    length, layers = 14, structure.layers
    found = data(structure, length)
    y, _ = define(structure, found[:layers], *found[layers:])
    *tokens, share = found[layers:]
    _, weights, written = run(structure, L2(), found[:layers], chunks(*(x[:, :cut] for x in tokens), share, cut))
    first = cut % CHUNK
    later = chunks(*(x[:, cut:] for x in tokens), share, length - cut, written if first else None, first)
    fast, *_ = run(structure, L2(), weights, later)
    after = rows(fast, first, length - cut)
    close(after, y[:, cut:], 1e-12)
    for a, b in zip(gradients(after, found), gradients(y[:, cut:], found), strict=True):
        close(a, b, 1e-11)


@pytest.mark.parametrize("cut", [0, 3, 8])
def test_the_chunk_algebra_knows_the_share(structure: Normed, cut: int) -> None:
    found = data(structure, 11)
    layers, plain = structure.layers, memory(structure)
    y, _ = define(structure, found[:layers], *found[layers:])
    *tokens, share = found[layers:]
    state, parts = plain.init_state(found[:layers]), []
    for part in (slice(0, cut), slice(cut, None)):
        if part != slice(0, 0):
            q, k, v, eta = (x[:, part] for x in tokens)
            out, state = chunked(plain, state, q, k, v, eta, torch.ones_like(eta), share=share)
            parts.append(out)
    close(torch.cat(parts, 1), y, 1e-12)
    for a, b in zip(gradients(torch.cat(parts, 1), found), gradients(y, found), strict=True):
        close(a, b, 1e-11)


@pytest.mark.parametrize("objective", [L2(), Huber(0.5)], ids=["l2", "huber"])
def test_writes_are_the_gradient(structure: Normed, objective) -> None:
    weights, (k, v) = init(structure, D, D, HIDDEN, (ROWS,)), torch.randn(2, ROWS, 5, D)
    total = lambda w: objective.loss(structure.forward(fixed(w), k), v).sum()  # noqa: E731
    sights = structure.writes(weights, k, v, objective)
    for sight, gradient in zip(sights, torch.func.grad(total)(weights), strict=True):
        close(sight.delta.mT @ sight.x, gradient, 1e-12)


def test_gelu_and_its_slope() -> None:
    z = torch.linspace(-4, 4, 50, requires_grad=True)
    y, slope = gelu_and_slope(z)
    expected = torch.nn.functional.gelu(z, approximate="tanh")
    close(y, expected, 1e-14)
    close(slope, torch.autograd.grad(expected.sum(), z)[0], 1e-14)
    torch.autograd.gradcheck(gelu_and_slope, z)


def test_the_read_is_a_layer_norm_beside_a_residual() -> None:
    gain, bias = torch.randn(2, D)
    (weight,) = init(Normed(gain, bias), D, D, 0)
    x = torch.randn(5, D)
    z = x @ weight[:, :-1].T + weight[:, -1]
    expected = x + torch.nn.functional.layer_norm(z, (D,), gain, bias, EPS)
    close(Normed(gain, bias).forward(fixed([weight]), x), expected, 1e-12)


def test_normed_refuses_what_it_is_not() -> None:
    with pytest.raises(InputError, match="use Matrix"):
        Normed(torch.ones(1), torch.ones(1)).shapes(3, 4, 5)
    with pytest.raises(InputError, match="1 linear layer or 2"):
        Normed(torch.ones(1), torch.ones(1), 3)
