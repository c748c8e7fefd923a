"""The fused chunk of the default memory against the memory algebra, values and gradients."""

import pytest
import torch

from nestling.errors import InputError
from nestling.kernels.dispatch import choose
from nestling.kernels.mlp_chunk import FUSED
from nestling.memory.memory import Memory, Momentum
from nestling.memory.selfmod import Inputs, SelfModifying, Slow, chunked, scan
from nestling.memory.stack import ALGEBRA, Piece

N, D, HIDDEN, CHUNK = 2, 4, 5, 8
MEMORY = Memory(chunk_size=CHUNK)


def problem(memories, length, query, seed=0):
    """Everything a chunk is made of, requiring gradients: anchors, deviations, k, target, eta, log_alpha, q."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = (D, HIDDEN), (HIDDEN, D)
    leaves = [random(memories, N, *shape) for shape in shapes] + [0.3 * random(memories, N, *s) for s in shapes]
    k = torch.nn.functional.normalize(random(N, length, D), dim=-1)
    leaves += [k, random(memories, N, length, D), random(N, length).exp(), -random(N, length).exp()]
    leaves += [random(N, length, D)] if query else []
    return [leaf.requires_grad_() for leaf in leaves]


def advanced(kernel, leaves):
    """Outputs of one chunk: y (where there is a query) and the deviations."""
    (A1, A2, D1, D2, k, target, eta, log_alpha), q = leaves[:8], (leaves[8] if len(leaves) > 8 else None)
    weights = A1 + D1, A2 + D2
    piece = Piece((A1, A2), weights, (D1, D2), (), target, k, eta, log_alpha, None, q, None, True)
    y, deviations, _ = kernel.advance(MEMORY, piece)
    return ([] if y is None else [y]) + list(deviations)


def assert_equal(compute, leaves):
    """Both kernels give the same values and gradients."""
    fused, algebra = compute(FUSED, leaves), compute(ALGEBRA, leaves)
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in algebra]
    for actual, expected in zip(fused, algebra, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    gradients = [torch.autograd.grad(outputs, leaves, seeds, materialize_grads=True) for outputs in (fused, algebra)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("query", [True, False], ids=["query", "no query"])
@pytest.mark.parametrize("memories", [1, 5])
@pytest.mark.parametrize("length", [1, 2, 3, CHUNK - 1, CHUNK])
def test_chunk(length, memories, query):
    assert_equal(advanced, problem(memories, length, query))


def test_chunk_when_only_some_outputs_are_used():
    leaves = problem(5, CHUNK, True)
    for part in (slice(0, 1), slice(1, None)):
        assert_equal(lambda kernel, rows, part=part: advanced(kernel, rows)[part], leaves)


def padded(leaves, first):
    """The same with every token from `first` on a padded one."""
    dead = torch.arange(leaves[6].shape[1]) >= first
    return [*leaves[:6], *(x.masked_fill(dead, 0) for x in leaves[6:8]), *leaves[8:]]


@pytest.mark.parametrize("memories", [1, 5])
def test_padded_tokens(memories):
    leaves = problem(memories, CHUNK, True)
    assert_equal(lambda kernel, rows: advanced(kernel, padded(rows, 5)), leaves)
    short = [*leaves[:4], *(x[..., :5, :] for x in leaves[4:6]), *(x[:, :5] for x in leaves[6:])]
    _, *expected = advanced(FUSED, short)
    for actual, state in zip(advanced(FUSED, padded(leaves, 5))[1:], expected, strict=True):
        torch.testing.assert_close(actual, state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_stay_finite(dtype):
    leaves = [x.detach().to(dtype) for x in problem(5, CHUNK, True)]
    leaves[6] = torch.tensor([0.0, 1e-30, 1e-4, 1.0, 55.0, 1e4, 1e8, 1.0], dtype=dtype).repeat(N, 1)
    leaves[7] = torch.tensor([0.0, -1e-30, -1e4, -1e-3, -200.0, 0.0, -1.0, -1e8], dtype=dtype).repeat(N, 1)
    leaves = [x.requires_grad_() for x in leaves]
    outputs = advanced(FUSED, leaves)
    gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])
    assert all(x.isfinite().all() for x in (*outputs, *gradients))


@pytest.mark.parametrize("length", [1, 3, CHUNK])
def test_reading(length):
    generator = torch.Generator().manual_seed(0)
    shapes = (5, N, D, HIDDEN), (5, N, HIDDEN, D), (N, length, D), (N, length, D)
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    structure = MEMORY.structure

    def two_inputs(kernel, rows):
        return kernel.read(structure, rows[:2], [(rows[2], 1), (rows[3], 3)])

    def project(kernel, rows):
        return kernel.project(structure, rows[:2], *rows[2:])

    gates = torch.randn(N, 2, D, generator=generator, dtype=torch.float64).requires_grad_()
    assert_equal(project, [*leaves, gates])

    def targets(kernel, rows):
        return [kernel.target(structure, rows[:2], rows[2])]

    assert_equal(two_inputs, leaves)
    assert_equal(targets, leaves[:3])


@pytest.mark.parametrize("projections", [1, 2])
@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_fused_equals_the_definition(length, projections):
    config = SelfModifying(MEMORY, projections * CHUNK)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    heads = 2
    initial = random(5, heads, D, HIDDEN), random(5, heads, HIDDEN, D)
    slow = Slow(initial, random(heads, D), random(heads), random(heads, D), random(heads))
    inputs = Inputs(*(random(2, heads, length, D) for _ in range(3)))
    leaves = [*initial, *slow[1:], *inputs[:3]]
    outputs = [chunked(config, slow, inputs, kernel=FUSED)[0], scan(config, slow, inputs)[0]]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-9)
    seed = torch.randn(outputs[0].shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, leaves, seed, materialize_grads=True) for y in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_choosing():
    assert choose(MEMORY) is FUSED
    assert choose(MEMORY, "algebra") is ALGEBRA
    other = Memory(chunk_size=CHUNK, momentum=Momentum())
    assert choose(other) is ALGEBRA
    with pytest.raises(InputError, match=r"kernel='fused' doesn't compute .* use kernel='auto' or 'algebra'"):
        choose(other, "fused")
    with pytest.raises(InputError, match="kernel='quick' is unknown: choose one of auto, fused, algebra"):
        choose(MEMORY, "quick")
