"""MultiFrequency against accumulation written by hand, and as a torch optimizer."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

from exact import same
from nestling.errors import InputError
from nestling.optim import DGD, M3, MultiFrequency, Muon, param_groups
from optim.sharded import WORLD, both, shard

STEPS = 13
WRAPPED = {
    "sgd": lambda groups: SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda groups: AdamW(groups, lr=0.02),
    "adamw foreach": lambda groups: AdamW(groups, lr=0.02, foreach=True),
    "adamw fused": lambda groups: AdamW(groups, lr=0.02, fused=True),
    "torch's muon": lambda groups: torch.optim.Muon(groups, lr=0.02),
    "muon": lambda groups: Muon(groups, lr=0.02),
    "m3": lambda groups: M3(groups, lr=0.02, frequency=2),
    "m3 float64": lambda groups: M3(groups, lr=0.02, frequency=2, precision="float64"),
}


def network(seed=0, dtype=torch.float32):
    """Three matrices: of period 1, 3 and 4 in these tests."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(5, 5, bias=False) for _ in range(3))).to(dtype)


def groups(model, periods=(1, 3, 4), **settings):
    return [
        {"params": list(layer.parameters()), "period": period, **settings}
        for layer, period in zip(model, periods, strict=True)
    ]


def backward(model, step, rank=None):
    """With a rank, one of two halves of the step's batch."""
    data = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
    data = data if rank is None else data.chunk(WORLD)[rank]
    loss = functional.mse_loss(model(data.tanh()), data.roll(1, -1))
    loss.backward()
    return loss


def train(model, optimizer, start, stop, rank=None):
    for step in range(start, stop):
        optimizer.zero_grad()
        backward(model, step, rank)
        optimizer.step()


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", WRAPPED)
def test_period_one_is_the_wrapped_optimizer(name):
    ours, theirs = network(), network()
    plain = WRAPPED[name](list(theirs.parameters()))
    wrapped = MultiFrequency(WRAPPED[name](list(ours.parameters())))
    train(ours, wrapped, 0, STEPS)
    train(theirs, plain, 0, STEPS)
    assert same(weights(ours), weights(theirs))
    assert same(wrapped.state_dict()["state"], plain.state_dict()["state"])
    assert not wrapped.accumulated


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", WRAPPED)
def test_equals_accumulation_written_by_hand(name, reduction):
    """One optimizer a matrix; autograd itself adds up `.grad` until that optimizer's turn."""
    ours, theirs = network(), network()
    train(ours, MultiFrequency(WRAPPED[name](groups(ours)), reduction=reduction), 0, STEPS)
    separate = [
        (WRAPPED[name](list(layer.parameters())), period) for layer, period in zip(theirs, (1, 3, 4), strict=True)
    ]
    for step in range(STEPS):
        backward(theirs, step)
        for optimizer, period in separate:
            if (step + 1) % period == 0:
                for parameter in optimizer.param_groups[0]["params"]:
                    parameter.grad *= 1 / period if reduction == "mean" else 1
                optimizer.step()
                optimizer.zero_grad()
    assert same(weights(ours), weights(theirs))


@pytest.mark.paper("Eq. 71")
def test_gradient_descent_is_equation_71_in_float64():
    model = network(dtype=torch.float64)
    optimizer, rate = MultiFrequency(SGD(groups(model), lr=0.1), period=1), 0.1
    theta, errors = weights(model), []
    for step in range(1, STEPS):
        optimizer.zero_grad()
        backward(model, step)
        errors.append([parameter.grad.clone() for parameter in model.parameters()])
        optimizer.step()
        for layer, period in enumerate((1, 3, 4)):
            if step % period == 0:
                theta[layer] -= rate * sum(error[layer] for error in errors[-period:])
    torch.testing.assert_close(weights(model), theta, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", WRAPPED)
def test_between_updates_neither_parameters_nor_moments_change(name):
    model = network()
    optimizer = MultiFrequency(WRAPPED[name](groups(model)))
    for step in range(STEPS):
        before, moments = weights(model), copy.deepcopy(list(optimizer.state.values()))
        train(model, optimizer, step, step + 1)
        moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
        assert moved == [(step + 1) % period == 0 for period in (1, 3, 4)]
        if len(moments) == 3:
            unmoved = [
                same(old, new) for old, new in zip(moments, map(optimizer.state.get, model.parameters()), strict=True)
            ]
            assert unmoved == [not m for m in moved]


@pytest.mark.parametrize("stop", range(STEPS))
@pytest.mark.parametrize("name", ["sgd", "adamw fused", "m3"])
def test_resumes_at_any_step_to_the_last_bit(name, stop):
    model = network()
    optimizer = MultiFrequency(WRAPPED[name](groups(model)))
    train(model, optimizer, 0, stop)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    twin = network(seed=1)
    again = MultiFrequency(WRAPPED[name](groups(twin, (1, 1, 1))))
    train(twin, again, 0, 2)
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert same(again.state_dict(), saved[1])
    assert again.clock == stop
    train(model, optimizer, stop, STEPS)
    train(twin, again, stop, STEPS)
    assert same(weights(model), weights(twin))
    assert same(optimizer.state_dict(), again.state_dict())


def test_the_state_of_the_wrapped_optimizer_alone_starts_the_clock_anew():
    model = network()
    plain = AdamW(model.parameters())
    train(model, plain, 0, 3)
    optimizer = MultiFrequency(AdamW(model.parameters()), period=2)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.clock, optimizer.param_groups[0]["period"]) == (0, 2)
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


def test_only_slow_groups_hold_accumulators_and_the_update_frees_them():
    model = network()
    optimizer = MultiFrequency(SGD(groups(model), lr=0.1))
    held = []
    for step in range(12):
        train(model, optimizer, step, step + 1)
        held.append([parameter in optimizer.accumulated for parameter in model.parameters()])
    assert held == [[False, step % 3 != 0, step % 4 != 0] for step in range(1, 13)]
    assert optimizer.state_dict()["state"] == {}


def test_zero_grad_clears_gradients_and_nothing_else():
    model = network()
    optimizer = MultiFrequency(SGD(groups(model), lr=0.1))
    train(model, optimizer, 0, 1)
    before = [gradient.clone() for gradient in optimizer.accumulated.values()]
    gradients = [parameter.grad for parameter in model.parameters()]
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert same(before, list(optimizer.accumulated.values()))
    assert same(before, gradients[1:])


def test_gradients_after_a_step_are_those_from_before_it():
    model = network()
    optimizer = MultiFrequency(SGD(groups(model), lr=0.1), reduction="mean")
    for step in range(12):
        optimizer.zero_grad()
        backward(model, step)
        before = [parameter.grad for parameter in model.parameters()]
        kept = [gradient.clone() for gradient in before]
        optimizer.step()
        assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), before, strict=True))
        assert same(kept, before)


def test_a_parameter_without_gradient_stays_and_one_with_some_takes_those():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MultiFrequency(SGD([a, b], lr=1.0), period=3)
    a.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    a.grad = None
    optimizer.step()
    optimizer.step()
    assert torch.equal(a.detach(), torch.tensor([0.0, -1.0]))
    assert torch.equal(b.detach(), torch.ones(2))


def test_half_precision_gradients_add_up_in_float32():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MultiFrequency(SGD([parameter], lr=1.0), period=258)
    for _ in range(258):
        parameter.grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.step()
    assert parameter.item() == -258  # in bfloat16, 256 + 1 = 256


def test_schedulers_and_added_groups_reach_the_wrapped_optimizer():
    model = network()
    optimizer = MultiFrequency(SGD(groups(model)[:1], lr=0.1))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, optimizer, 0, 1)
    schedule.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.05
    optimizer.add_param_group({"params": list(model[2].parameters()), "period": 2, "lr": 0.3})
    assert [group["clock"] for group in optimizer.state_dict()["param_groups"]] == [1, 1]
    before = weights(model)
    train(model, optimizer, 1, 2)
    assert [torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)] == [False, True, False]
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": list(model[2].parameters())})


def test_a_closure_is_called_once_and_its_loss_returned():
    model, calls = network(), []
    optimizer = MultiFrequency(SGD(groups(model), lr=0.1))

    def closure():
        optimizer.zero_grad()
        calls.append(backward(model, len(calls)))
        return calls[-1]

    twin = network()
    for step in range(6):
        assert optimizer.step(closure) is calls[-1]
        assert len(calls) == step + 1
    train(twin, MultiFrequency(SGD(groups(twin), lr=0.1)), 0, 6)
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_copy_is_independent_and_continues_alike(name):
    model = network()
    optimizer = MultiFrequency(WRAPPED[name](groups(model)))
    train(model, optimizer, 0, 5)
    twin, again = copy.deepcopy((model, optimizer))
    train(model, optimizer, 5, STEPS)
    assert again.clock == 5
    train(twin, again, 5, STEPS)
    assert same(weights(model), weights(twin))


def test_a_failing_update_changes_nothing():
    class Fails(SGD):
        def step(self, closure=None):
            raise InputError("no")

    model = network()
    optimizer = MultiFrequency(Fails(groups(model, (2, 2, 2)), lr=0.1))
    train(model, optimizer, 0, 1)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    backward(model, 1)
    gradients = [parameter.grad for parameter in model.parameters()]
    with pytest.raises(InputError, match="no"):
        optimizer.step()
    assert same(optimizer.state_dict(), before)
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))


def test_a_gradient_that_is_not_finite_is_refused_before_it_is_mixed_with_good_ones():
    model = network()
    named = {f"{number}.weight": {"period": period} for number, period in enumerate((1, 3, 4))}
    optimizer = MultiFrequency(Muon(param_groups(model, {"*": "matrix"} | named)))
    train(model, optimizer, 0, 1)
    before = copy.deepcopy((weights(model), optimizer.state_dict()))
    model[2].weight.grad[1, 1] = float("nan")
    with pytest.raises(InputError, match=r"gradient of parameter '2\.weight' is not finite; nothing was changed"):
        optimizer.step()
    assert same((weights(model), optimizer.state_dict()), before)


def test_a_step_that_the_gradient_scaler_skips_does_not_move_the_clock():
    model = network()
    optimizer = MultiFrequency(SGD(groups(model), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scales = []
    for step in range(5):
        optimizer.zero_grad()
        data = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)) * (float("inf") if step == 1 else 1)
        scaler.scale(model(data).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [8, 4, 4, 4, 4]
    assert optimizer.clock == 4
    assert all(tensor.isfinite().all() for tensor in [*model.parameters(), *optimizer.accumulated.values()])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_step_equals_the_plain_one():
    torch.compiler.reset()
    ours, theirs, counter = network(), network(), CompileCounter()
    compiled, plain = (MultiFrequency(AdamW(groups(model), lr=0.02)) for model in (ours, theirs))
    compiled.step = torch.compile(compiled.step, backend=counter)
    train(ours, compiled, 0, STEPS)
    train(theirs, plain, 0, STEPS)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-5)
    assert counter.frame_count >= 4  # one graph for each choice of groups, and one for the first step of each
    torch.compiler.reset()


def test_state_dict_hooks_see_the_whole():
    model = network()
    optimizer, seen = MultiFrequency(SGD(groups(model), lr=0.1)), []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append(o))
    optimizer.register_state_dict_post_hook(lambda o, state: state | {"more": len(state["state"])})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append(state["more"]))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.clock))
    train(model, optimizer, 0, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [optimizer, 2, 1]


def test_it_is_a_torch_optimizer_that_prints_its_periods():
    optimizer = MultiFrequency(SGD(network().parameters(), lr=0.1), period=4)
    assert isinstance(optimizer, Optimizer)
    assert "period: 4" in repr(optimizer)


@pytest.mark.parametrize("period", [0, -1, 1.5, True, "4", None], ids=repr)
def test_a_period_that_is_none_is_refused(period):
    model = network()
    sentence = f"period: {period!r} of a parameter group is not allowed"
    with pytest.raises(InputError, match=sentence):
        MultiFrequency(SGD(model.parameters(), lr=0.1), period=period)
    optimizer = MultiFrequency(SGD(model[:1].parameters(), lr=0.1))
    with pytest.raises(InputError, match=sentence):
        optimizer.add_param_group({"params": list(model[1].parameters()), "period": period})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 1


def test_an_optimizer_that_looks_at_inputs_is_not_slowed_down():
    model = nn.Linear(8, 8)
    assert MultiFrequency(DGD(model)).param_groups[0]["period"] == 1
    with pytest.raises(InputError, match="period: 3 is not allowed with DGD"):
        MultiFrequency(DGD(model), period=3)


def test_a_reduction_that_is_none_is_refused():
    with pytest.raises(InputError, match="reduction: 'max' is not allowed; give one of sum, mean"):
        MultiFrequency(SGD(network().parameters(), lr=0.1), reduction="max")


def sharded(rank):
    """Two ranks, each with half of every batch, equal one process; and a resumed one equals them to the last bit."""
    for name in ("adamw", "m3 float64"):
        whole, parts = network(dtype=torch.float64), shard(network(dtype=torch.float64))
        train(whole, MultiFrequency(WRAPPED[name](groups(whole))), 0, STEPS)
        optimizer = MultiFrequency(WRAPPED[name](groups(parts)))
        train(parts, optimizer, 0, 6, rank)
        saved = copy.deepcopy((parts.state_dict(), optimizer.state_dict()))
        train(parts, optimizer, 6, STEPS, rank)
        first = [parameter.full_tensor() for parameter in parts.parameters()]
        torch.testing.assert_close(first, weights(whole), rtol=0, atol=1e-12)
        parts.load_state_dict(saved[0])
        again = MultiFrequency(WRAPPED[name](groups(parts)))
        again.load_state_dict(saved[1])
        train(parts, again, 6, STEPS, rank)
        assert same(first, [parameter.full_tensor() for parameter in parts.parameters()])


def test_two_processes_that_share_a_model_equal_one(tmp_path):
    both(sharded, tmp_path)
