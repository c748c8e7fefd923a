"""Memories over a batch: equal to the token-by-token definition, whatever the cuts and wherever sequences stand."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.tables import CHUNK, HIDDEN, OBJECTIVES, D, close, memory
from nestling.errors import InputError
from nestling.memory.memory import Memory
from nestling.memory.objective import Huber
from nestling.memory.retention import ChannelDecay
from nestling.memory.run import Inputs, begin, read, run
from nestling.memory.scan import scan
from nestling.memory.structure import init

B, H = 2, 2
MEMBERS = {
    "gd": memory(rule="gd"),
    "dgd": memory(),
    "frozen features": memory(rule="dgd-frozen"),
    "matrix, previous": memory("matrix", read="previous"),
    "momentum": memory(rule="gd", momentum="average"),
    "momentum of the letter, zero": memory(rule="gd", retention="zero", momentum="letter", read="boundary"),
    "momentum and erase": memory(momentum="average", read="previous"),
    "lq": memory(rule="gd", retention="lq", read="boundary", objective="lp"),
    "kl": memory(rule="gd", retention="kl", read="boundary"),
    "kl with momentum": memory(rule="gd", retention="kl", momentum="average", read="boundary"),
    **{name: memory(rule="gd", objective=name) for name in OBJECTIVES if name != "l2"},
}


def problem(memory: Memory, length: int, batch: int = B) -> tuple[tuple, Inputs]:
    """Initial weights `(H, out, in)` and inputs, all requiring gradients."""
    initial = init(memory.structure, D, D, HIDDEN, (H,), gain=0.5)
    q, k, v = (torch.randn(batch, H, length, D) * 0.5 for _ in range(3))
    gates = 0.3 * torch.rand(batch, H, length), (0.5 + 0.5 * torch.rand(batch, H, length)).log()
    beta = None if memory.momentum is None else 0.8 * torch.rand(batch, H, length)
    inputs = Inputs(q, k, v, *gates, beta)
    for x in (*initial, *inputs):
        if x is not None:
            x.requires_grad_()
    return initial, inputs


def defined(memory: Memory, initial: tuple, inputs: Inputs) -> list[torch.Tensor]:
    """Outputs and final state of the definition."""
    q, k, v, eta, log_alpha, beta = inputs[:6]
    state = memory.init_state([w.expand(k.shape[0], *w.shape) for w in initial])
    y, state = scan(memory, state, q, k, v, eta, log_alpha.exp(), beta)
    return [y, *state.boundary, *state.current, *state.momentum]


def cut(inputs: Inputs, tokens: slice | list[int], rows: slice = slice(None), live: torch.Tensor | None = None):
    """Some tokens of some sequences."""
    return Inputs(*(None if x is None else x[rows, :, tokens] for x in inputs[:6]), live)


@pytest.mark.paper("Eq. 88, 90")
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 1])
@pytest.mark.parametrize("name", MEMBERS)
def test_equals_the_definition(name: str, length: int) -> None:
    mem = MEMBERS[name]
    initial, inputs = problem(mem, length)
    y, carried = run(mem, initial, inputs)
    assert carried is not None
    results = []
    for values in ([y, *carried.boundary, *carried.current, *carried.momentum], defined(mem, initial, inputs)):
        generator = torch.Generator().manual_seed(1)
        loss = torch.stack([(torch.randn(x.shape, generator=generator) * x).sum() for x in values]).sum()
        leaves = [*initial, *(x for x in inputs if x is not None)]
        results.append([*values, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for a, b in zip(*results, strict=True):
        close(a, b)
    assert carried.count.tolist() == [length] * B
    dropped, none = run(mem, initial, inputs, keep=False)
    assert none is None
    close(dropped, y)


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=6, deadline=None)
@given(cuts=st.sets(st.integers(1, 3 * CHUNK), max_size=5))
@torch.no_grad()
def test_any_cut_gives_the_same(name: str, cuts: set[int]) -> None:
    mem = MEMBERS[name]
    initial, inputs = problem(mem, 3 * CHUNK + 1)
    whole = defined(mem, initial, inputs)
    outputs, carried = [], None
    for start, stop in itertools.pairwise(sorted({0, 3 * CHUNK + 1, *cuts})):
        y, carried = run(mem, initial, cut(inputs, slice(start, stop)), carried)
        outputs.append(y)
    assert carried is not None
    found = [torch.cat(outputs, 2), *carried.boundary, *carried.current, *carried.momentum]
    for a, b in zip(found, whole, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=3, max_size=3))
@torch.no_grad()
def test_padding_writes_nothing_and_sequences_may_stand_apart(name: str, lengths: list[int]) -> None:
    mem = MEMBERS[name]
    initial, inputs = problem(mem, 9 + CHUNK + 2, batch=3)
    live = torch.arange(9) < torch.tensor(lengths)[:, None]
    first, carried = run(mem, initial, cut(inputs, slice(9), live=live))
    assert carried is not None
    assert carried.count.tolist() == lengths
    second, carried = run(mem, initial, cut(inputs, slice(9, None)), carried)
    assert carried is not None
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = cut(inputs, [*range(length), *range(9, 9 + CHUNK + 2)], one)
        found = [torch.cat([first[one, :, :length], second[one]], 2)]
        found += [w[one] for group in carried[:3] for w in group]
        for a, b in zip(found, defined(mem, initial, alone), strict=True):
            close(a, b)


@pytest.mark.parametrize("name", ["gd", "kl", "momentum of the letter, zero"])
@torch.no_grad()
def test_a_read_writes_nothing_and_sees_all_that_was_written(name: str) -> None:
    mem = MEMBERS[name]
    initial, inputs = problem(mem, 2 * CHUNK)
    _, carried = run(mem, initial, inputs)
    assert carried is not None
    following = cut(inputs, slice(1))._replace(eta=torch.zeros(B, H, 1), log_alpha=torch.zeros(B, H, 1))
    if mem.momentum is None:  # else the momentum still moves
        close(read(mem, initial, following.q, carried), run(mem, initial, following, carried)[0])
    start = begin(mem, initial, B)
    close(read(mem, initial, inputs.q), read(mem, initial, inputs.q, start))
    assert not torch.allclose(read(mem, initial, inputs.q, carried), read(mem, initial, inputs.q))


@torch.no_grad()
def test_every_token_may_have_its_own_threshold() -> None:
    mem = memory(rule="gd", objective="huber")
    initial, inputs = problem(mem, 2 * CHUNK + 1)
    threshold = torch.rand(B, H, 2 * CHUNK + 1)
    y, _ = run(mem, initial, inputs._replace(threshold=threshold))
    state, outputs = mem.init_state([w.expand(B, *w.shape) for w in initial]), []
    for t in range(2 * CHUNK + 1):
        one = replace(mem, objective=Huber(threshold[..., t, None, None]))
        q, k, v, eta, log_alpha = (x for x in cut(inputs, slice(t, t + 1))[:5] if x is not None)
        out, state = scan(one, state, q, k, v, eta, log_alpha.exp())
        outputs.append(out)
    close(y, torch.cat(outputs, 2))
    assert not torch.allclose(y, run(mem, initial, inputs)[0])


def test_what_has_no_such_form_is_refused() -> None:
    initial, inputs = problem(MEMBERS["gd"], 3)
    with pytest.raises(InputError, match="is not offered for batches"):
        run(memory("mlp", "omega"), initial, inputs)
    with pytest.raises(InputError, match="is not offered for batches"):
        run(Memory(retention=ChannelDecay()), initial, inputs)
    with pytest.raises(InputError, match="use read='boundary'"):
        run(memory(rule="gd", retention="kl"), initial, inputs)
    with pytest.raises(InputError, match="beta is missing"):
        run(MEMBERS["momentum"], initial, inputs)
    with pytest.raises(InputError, match="beta was given"):
        run(MEMBERS["gd"], initial, inputs._replace(beta=inputs.eta))
