"""Self-modifying memories: the chunk-parallel form against the token-by-token definition."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum
from nestling.memory.objective import DotProduct
from nestling.memory.retention import Decay
from nestling.memory.rule import Frozen
from nestling.memory.scan import scan as scan_memory
from nestling.memory.selfmod import Inputs, SelfModifying, Slow, chunked, scan, step_size
from nestling.memory.structure import Matrix

B, H, D, HIDDEN = 2, 2, 4, 5
LENGTHS = (1, 2, 3, 4, 5, 17)
ALL = ("v", "k", "eta", "alpha", "mem")

CONFIGS = {
    "default": SelfModifying(Memory(chunk_size=4), 4),
    "two chunk lengths": SelfModifying(Memory(chunk_size=4), 8),
    "chunk of one": SelfModifying(Memory(chunk_size=1), 1),
    "momentum": SelfModifying(Memory(chunk_size=4, momentum=Momentum()), 8),
    "previous": SelfModifying(Memory(chunk_size=4, read="previous"), 4),
    "boundary": SelfModifying(Memory(chunk_size=4, read="boundary"), 8),
    "anchor zero": SelfModifying(Memory(chunk_size=4, retention=Decay("zero")), 4),
    "surprise": SelfModifying(Memory(chunk_size=4, rules=(DGD("surprise"), DGD("surprise"))), 4),
    "gradient descent": SelfModifying(Memory(chunk_size=4, rules=(GD("implicit", 0.25),) * 2), 4),
    "explicit step": SelfModifying(Memory(chunk_size=4, rules=(DGD(step="explicit"), Frozen())), 8),
    "explicit surprise": SelfModifying(Memory(chunk_size=4, rules=(DGD("surprise", "explicit"), Frozen())), 4),
    "dot product": SelfModifying(
        Memory(chunk_size=4, objective=DotProduct(), rules=(GD("implicit"), Frozen())), 8, updated=("mem",)
    ),
    "matrix": SelfModifying(Memory(Matrix(), chunk_size=4, rules=(DGD(step="explicit"),)), 4),
    "frozen features": SelfModifying(Memory(chunk_size=4, rules=(DGD(), Frozen())), 4),
    "content only": SelfModifying(Memory(chunk_size=4), 8, updated=("mem",)),
    "eta and content": SelfModifying(Memory(chunk_size=4), 8, updated=("eta", "mem")),
    "adaptive query": SelfModifying(Memory(chunk_size=4), 8, updated=(*ALL, "q"), adaptive_query=True),
    "frozen query": SelfModifying(Memory(chunk_size=4), 4, adaptive_query=True),
    "shared targets": SelfModifying(Memory(chunk_size=4), 4, own_targets=False),
}


def problem(config, length, seed=0, dtype=torch.float64):
    """Random slow parameters and inputs, all requiring gradients."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    count = len(config.names)
    initial = tuple(random(count, H, *shape) for shape in config.memory.structure.shapes(D, D, HIDDEN))
    slow = Slow(initial, random(H, D), random(H), random(H, D), random(H))
    beta = None
    if config.memory.momentum is not None:
        beta = torch.rand(B, H, length, generator=generator, dtype=dtype).requires_grad_()
    inputs = Inputs(random(B, H, length, D), random(B, H, length, D), random(B, H, length, D), beta)
    leaves = [*slow.initial, *slow[1:], *(x for x in inputs[:4] if x is not None)]
    return slow, inputs, leaves


def states_of(config, carried):
    """Current deviations by memory name."""
    return {name: [w[:, i] for w in carried.current] for i, name in enumerate(config.stack)}


@pytest.mark.paper("Eq. 79-91")
@pytest.mark.parametrize(("name", "length"), list(itertools.product(CONFIGS, LENGTHS)))
def test_chunked_equals_scan(name, length):
    config = CONFIGS[name]
    slow, inputs, leaves = problem(config, length)
    expected, states = scan(config, slow, inputs)
    actual, carried = chunked(config, slow, inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    pairs = [(actual, expected)]
    for memory, weights in states_of(config, carried).items():
        for w, expected_w in zip(weights, states[memory].current, strict=True):
            torch.testing.assert_close(w, expected_w, rtol=0, atol=1e-9)
            pairs.append((w, expected_w))
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(e.shape, generator=generator, dtype=e.dtype) for _, e in pairs]
    gradients = [
        torch.autograd.grad(
            [p[i] for p in pairs if p[i].requires_grad],
            leaves,
            [s for s, p in zip(seeds, pairs, strict=True) if p[i].requires_grad],
            allow_unused=True,
        )
        for i in (0, 1)
    ]
    for a, e in zip(*gradients, strict=True):
        assert (a is None) == (e is None) or (a if a is not None else e).abs().max() == 0
        if a is not None and e is not None:
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_last_chunk_without_state_gives_the_same_outputs(name):
    config = CONFIGS[name]
    slow, inputs, _ = problem(config, 13)
    kept, _ = chunked(config, slow, inputs)
    dropped, none = chunked(config, slow, inputs, keep=False)
    assert none is None
    torch.testing.assert_close(dropped, kept, rtol=0, atol=1e-12)


def cut(inputs, start, stop, live=None):
    """Tokens [start, stop) of the inputs."""
    return Inputs(*(None if x is None else x[:, :, start:stop] for x in inputs[:4]), live)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 21), max_size=5))
def test_any_cut_gives_the_same(name, cuts):
    config = CONFIGS[name]
    with torch.no_grad():
        slow, inputs, _ = problem(config, 21)
        expected, end = chunked(config, slow, inputs)
        outputs, carried = [], None
        points = sorted({0, 21, *cuts})
        for start, stop in itertools.pairwise(points):
            y, carried = chunked(config, slow, cut(inputs, start, stop), carried)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 2), expected, rtol=0, atol=1e-10)
        for a, e in zip(carried.current, end.current, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_writes_nothing_and_rows_may_stand_apart(name):
    config = CONFIGS[name]
    with torch.no_grad():
        slow, inputs, _ = problem(config, 16)
        lengths = [7, 10]
        live = torch.arange(10) < torch.tensor(lengths)[:, None]
        first, carried = chunked(config, slow, cut(inputs, 0, 10, live))
        assert carried.count.tolist() == lengths
        second, _ = chunked(config, slow, cut(inputs, 10, 16), carried)
        for row, length in enumerate(lengths):
            tokens = [*range(length), *range(10, 16)]
            alone = Inputs(*(None if x is None else x[row : row + 1, :, tokens] for x in inputs[:4]))
            expected, _ = chunked(config, slow, alone)
            actual = torch.cat([first[row : row + 1, :, :length], second[row : row + 1]], 2)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "largest"), [("default", None), ("explicit step", 2.0), ("matrix", 2.0), ("explicit surprise", 1.0)]
)
def test_explicit_steps_turn_the_sign_of_what_is_stored_and_grow_nothing(name, largest):
    """Along the key the state is multiplied by the eigenvalue, measured here from the memory itself."""
    config = CONFIGS[name]
    assert config.largest_step == largest
    steps = step_size(torch.tensor([-40.0, 0.0, 40.0]), largest)
    if largest is None:
        assert steps.tolist() == pytest.approx([math.exp(-2), 1, math.exp(2)])
        return
    assert steps.tolist() == pytest.approx([0, largest / 2, largest])
    for step, eigenvalue in zip(steps, (1, 0, -1), strict=True):
        states = []
        for scale in (0.0, 1.0):
            weight = scale * torch.ones(1, D, D)
            mem = replace(config.memory, structure=Matrix(), rules=config.memory.layer_rules[:1], chunk_size=1)
            k, v = torch.eye(D)[None, :1], torch.randn(1, 1, D, generator=torch.Generator().manual_seed(2))
            _, state = scan_memory(mem, mem.init_state([weight]), k, k, v, step.expand(1, 1), torch.ones(1, 1))
            states.append(mem.weights(state, state.current)[0][0, :, 0])
        torch.testing.assert_close(states[1] - states[0], torch.full((D,), float(eigenvalue)))


def test_choices_that_contradict_each_other():
    with pytest.raises(InputError, match="projection_chunk_size=6 must be a multiple of chunk_size=4"):
        SelfModifying(Memory(chunk_size=4), 6)
    with pytest.raises(InputError, match="must hold 'mem'"):
        SelfModifying(Memory(chunk_size=4), 4, updated=("k",))
