"""The parallel form equals the token-by-token definition: values, final states, gradients, any length, any cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.tables import (
    CHUNK,
    OBJECTIVES,
    RETENTIONS,
    Inputs,
    close,
    close_states,
    flatten,
    inputs,
    members,
    memory,
)
from nestling.errors import InputError
from nestling.memory.memory import Memory, pair_steps
from nestling.memory.parallel import chunked
from nestling.memory.scan import scan

MIXED = [
    ("matrix", "dgd-surprise", "zero", "letter", "previous"),
    ("mlp", "dgd", "initial", "none", "causal"),
    ("mlp", "dgd", "initial", "average", "causal"),
    ("mlp", "omega", "channel", "average", "previous"),
    ("gated", "dgd-surprise", "initial", "average", "causal"),
]


def results(form, mem: Memory, data: Inputs) -> list[torch.Tensor]:
    """Outputs, final state, and the gradients of a fixed random function of both."""
    y, state = data.run(form, mem)
    values = [y, *flatten(state)]
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(x.shape, generator=generator) * x).sum() for x in values)
    grads = torch.autograd.grad(loss, data.tensors(), allow_unused=True, materialize_grads=True)
    return [*values, *grads]


def compare(mem: Memory, data: Inputs) -> None:
    for a, b in zip(results(chunked, mem, data), results(scan, mem, data), strict=True):
        close(a, b)


@pytest.mark.paper("Eq. 88, 90")
@pytest.mark.parametrize("names", members(), ids="-".join)
def test_parallel_form_equals_definition(names: tuple[str, ...]) -> None:
    mem = memory(*names)
    compare(mem, inputs(mem, CHUNK + 2).require_grad())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("structure", ["matrix", "mlp", "deep", "gated"])
@pytest.mark.parametrize("rule", ["gd", "dgd-surprise"])
def test_every_objective(objective: str, structure: str, rule: str) -> None:
    mem = memory(structure, rule, objective=objective)
    compare(mem, inputs(mem, CHUNK + 1).require_grad())


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("names", MIXED, ids="-".join)
def test_odd_lengths(names: tuple[str, ...], length: int) -> None:
    mem = memory(*names)
    compare(mem, inputs(mem, length).require_grad())


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 100])
def test_chunk_lengths(chunk_size: int) -> None:
    mem = memory("mlp", "dgd", momentum="average", chunk_size=chunk_size)
    compare(mem, inputs(mem, 9).require_grad())


@settings(max_examples=12, deadline=None)
@given(
    names=st.sampled_from([*MIXED, ("matrix", "omega", "kl", "average", "boundary")]),
    cuts=st.sets(st.integers(1, 3 * CHUNK + 1), max_size=4),
    token_by_token=st.booleans(),
)
def test_any_cut_gives_the_same(names: tuple[str, ...], cuts: set[int], token_by_token: bool) -> None:
    mem = memory(*names)
    data = inputs(mem, 3 * CHUNK + 2)
    whole, last = data.run(chunked, mem)
    form = scan if token_by_token else chunked
    parts, state, start = [], None, 0
    for stop in [*sorted(cuts), 3 * CHUNK + 2]:
        y, state = data.slice(start, stop).run(form, mem, state)
        parts.append(y)
        start = stop
    assert state is not None
    close(torch.cat(parts, -2), whole)
    close_states(state, last)


def test_states_flow_between_the_two_forms() -> None:
    mem = memory("mlp", "omega", momentum="average")
    data = inputs(mem, 3 * CHUNK + 2)
    whole, last = data.run(scan, mem)
    first, state = data.slice(0, CHUNK + 2).run(scan, mem)
    second, state = data.slice(CHUNK + 2, 3 * CHUNK + 2).run(chunked, mem, state)
    close(torch.cat([first, second], -2), whole)
    close_states(state, last)


@pytest.mark.parametrize("read", ["causal", "previous", "boundary"])
def test_reads_see_no_later_token(read: str) -> None:
    mem = memory("mlp", "dgd", read=read)
    data = inputs(mem, 2 * CHUNK + 1)
    y, _ = data.run(chunked, mem)
    at = CHUNK + 1
    for name in ("q", "k", "v", "eta", "alpha"):
        getattr(data, name)[:, at:] += 0.1
    changed, _ = data.run(chunked, mem)
    assert torch.equal(y[:, :at], changed[:, :at])
    assert not torch.allclose(y[:, at:], changed[:, at:])


@pytest.mark.parametrize("read", ["previous", "boundary"])
def test_token_does_not_read_its_own_write(read: str) -> None:
    mem = memory("mlp", "dgd", read=read)
    data = inputs(mem, 2 * CHUNK)
    y, _ = data.run(chunked, mem)
    data.v[:, CHUNK + 1] += 1
    changed, _ = data.run(chunked, mem)
    assert torch.equal(y[:, : CHUNK + 2], changed[:, : CHUNK + 2])
    assert torch.equal(y[:, CHUNK + 2 :], changed[:, CHUNK + 2 :]) == (read == "boundary")


@pytest.mark.parametrize("retention", [name for name, r in RETENTIONS.items() if not r.linear])
@pytest.mark.parametrize("read", ["causal", "previous"])
def test_nonlinear_links_have_no_parallel_read_inside_a_chunk(retention: str, read: str) -> None:
    mem = memory("matrix", "gd", retention, read=read)
    data = inputs(mem, 3)
    assert data.run(scan, mem)[0].isfinite().all()
    with pytest.raises(InputError, match="use read='boundary'"):
        data.run(chunked, mem)


def test_per_layer_rates_and_omega_weights() -> None:
    mem = memory("mlp", "omega")
    data = inputs(mem, CHUNK + 3)
    gamma = torch.rand(2, CHUNK + 3, 3)
    etas = (data.eta, 2 * data.eta)
    args = (mem.init_state(data.initial), data.q, data.k, data.v, etas, data.alpha, None, gamma)
    (y, state), (y_scan, state_scan) = chunked(mem, *args), scan(mem, *args)
    close(y, y_scan)
    close_states(state, state_scan)
    assert not torch.allclose(y, data.run(chunked, mem)[0])


@pytest.mark.parametrize("names", MIXED[2:4], ids="-".join)
def test_gradcheck(names: tuple[str, ...]) -> None:
    mem = memory(*names, chunk_size=2)
    data = inputs(mem, 3, batch=1, d=2).require_grad()
    layers = len(data.initial)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        initial, (q, k, v, eta), rest = tensors[:layers], tensors[layers : layers + 4], tensors[layers + 4 :]
        alpha = rest[:-1] if mem.retention.per_channel else rest[0]
        y, state = chunked(mem, mem.init_state(initial), q, k, v, eta, alpha, rest[-1])
        return y, *state.current, *state.momentum

    assert torch.autograd.gradcheck(run, data.tensors(), fast_mode=True)


def test_omega_gives_no_step_to_pairs_before_the_first_token() -> None:
    steps = pair_steps(torch.ones(2, 4), 3, count=1, gamma=None)
    assert steps[0].tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
