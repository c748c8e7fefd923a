"""Two processes that share out the parameters equal one that has them whole."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from nestling.errors import InputError
from optim.conftest import give, parameters
from optim.sharded import both
from optim.tables import OPTIMIZERS

STEPS = 4
SHAPES = ((4, 6), (4, 6), (3, 2, 2, 2), (1, 5), (5,), (3,))


def run(make, params, whole, optimizer=None, seeds=range(STEPS)):
    """Steps along the gradients that the whole parameters would get."""
    optimizer = optimizer or make(groups(params), lr=0.05)
    for seed in seeds:
        give(whole, seed)
        for p, q in zip(params, whole, strict=True):
            p.grad = q.grad if p is q else distribute_tensor(q.grad, p.device_mesh, p.placements)
        optimizer.step()
    return optimizer


def groups(params):
    """The last vector by the optimizer's own rule, as a row."""
    return [{"params": params[:-1]}, {"params": params[-1:], "rule": "matrix"}]


def shares(mesh):
    return [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in parameters(SHAPES)]


def worker(rank):
    mesh = init_device_mesh("cpu", (2,))
    for name, make in OPTIMIZERS.items():
        whole, one = parameters(SHAPES), parameters(SHAPES)
        run(make, one, one)
        two = shares(mesh)
        optimizer = run(make, two, whole)
        for p, q in zip(one, two, strict=True):
            torch.testing.assert_close(q.full_tensor(), p, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        state = optimizer.state[two[0]]
        for kind, value in state.items():
            assert kind == "step" or (isinstance(value, DTensor) and 2 * len(value.to_local()) == len(value)), name
        _resumes(make, mesh, name)
        _refuses(optimizer, two, rank)


def _resumes(make, mesh, name):
    """From a state that was saved and loaded on every rank; the state itself bit for bit."""
    whole, straight, first = parameters(SHAPES), shares(mesh), shares(mesh)
    run(make, straight, whole)
    saved = run(make, first, whole, seeds=range(2)).state_dict()
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    optimizer = make(groups(second), lr=0.05)
    optimizer.load_state_dict(saved)
    for number, state in saved["state"].items():
        for kind, value in optimizer.state[second[number]].items():
            assert torch.equal(_local(value), _local(state[kind])), f"{name}: {kind}"
    run(make, second, whole, optimizer, range(2, STEPS))
    for p, q in zip(straight, second, strict=True):  # products may round otherwise where memory lies otherwise
        torch.testing.assert_close(q.to_local(), p.to_local(), rtol=1e-4, atol=1e-5)


def _local(value):
    return value.to_local() if isinstance(value, DTensor) else value


def _refuses(optimizer, params, rank):
    """A NaN in one rank's shard stops all ranks, by the parameter's name."""
    before = [p.to_local().clone() for p in params]
    if rank == 1:
        params[2].grad.to_local()[-1] = torch.nan
    with pytest.raises(InputError, match="parameter 2 of group 0 is not finite"):
        optimizer.step()
    assert all(torch.equal(p.to_local(), q) for p, q in zip(params, before, strict=True))


def test_shares_equal_the_whole(tmp_path):
    both(worker, tmp_path)
