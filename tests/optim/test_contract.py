"""Every optimizer is a torch.optim.Optimizer in every respect, and safe."""

import copy
import io
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from nestling.errors import InputError
from nestling.optim.base import MatrixOptimizer
from nestling.train import optimizer as saving
from optim.conftest import copies, equal, give, parameters, snapshot, steps


def test_it_learns_with_a_closure(make):
    weight = parameters(((3, 4), (3,)))
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    target = x @ torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).T
    optimizer = make(weight, lr=0.1, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (x @ weight[0].T + weight[1] - target).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[-1] < losses[0] / 2


def test_a_subclass_is_told_what_it_must_define():
    class Half(MatrixOptimizer):
        pass

    params = parameters(((3, 4),))
    give(params, 0)
    before = copies(params)
    with pytest.raises(TypeError, match=r"Half must define update\("):
        Half(params, {}, 0.1, 0.0).step()
    assert torch.equal(params[0], before[0])


def test_groups_have_settings_of_their_own(make):
    params = parameters()
    before = copies(params)
    optimizer = make([{"params": params[:1]}, {"params": params[1:2], "lr": 0.0}], lr=0.1)
    optimizer.add_param_group({"params": params[2:], "weight_decay": 0.5})
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.0, 0.1]
    steps(optimizer, params, range(2))
    assert [torch.equal(a, b) for a, b in zip(before, params, strict=True)] == [False, True] + [False] * 5


def test_a_group_given_to_two_optimizers_is_not_shared(make):
    group = {"params": parameters()}
    make([group], lr=0.1)
    assert set(group) == {"params"}


def test_schedulers_move_the_rate(make):
    params = parameters()
    optimizer = make(params, lr=0.1, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    steps(optimizer, params, [0])
    scheduler.step()
    before = copies(params)
    steps(optimizer, params, [1])
    assert equal(before, copies(params))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("taken", [1, 3, 5])
def test_a_loaded_state_continues_bit_for_bit(make, dtype, taken):
    params = parameters(dtype=dtype)
    optimizer = make(params, lr=0.05)
    steps(optimizer, params, range(taken))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    restored = make(twins, lr=1.0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert equal(snapshot(optimizer), snapshot(restored))
    steps(optimizer, params, range(taken, taken + 4))
    steps(restored, twins, range(taken, taken + 4))
    assert equal(params, twins)
    assert equal(snapshot(optimizer), snapshot(restored))


def test_loading_leaves_what_is_loaded_alone(make):
    params = parameters()
    optimizer = make(params, lr=0.05)
    steps(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    other = make(parameters(), lr=0.05)
    other.load_state_dict(saved)
    steps(other, [p for g in other.param_groups for p in g["params"]], range(3))
    assert equal(snapshot(optimizer), [v for s in saved["state"].values() for _, v in sorted(s.items())])


def test_state_goes_through_safetensors_and_json(make, tmp_path):
    params = parameters()
    names = [f"p{i}" for i in range(len(params))]
    optimizer = make([{"params": params, "names": names}], lr=0.05)
    steps(optimizer, params, range(4))
    tensors, groups = saving.export(optimizer)
    safetensors.torch.save_file(tensors, tmp_path / "state.safetensors")
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    restored = make([{"params": twins, "names": names}], lr=0.05)
    loaded = safetensors.torch.load_file(tmp_path / "state.safetensors")
    saving.restore(restored, loaded, json.loads(json.dumps(groups)))
    steps(optimizer, params, range(4, 8))
    steps(restored, twins, range(4, 8))
    assert equal(params, twins)


def test_a_deep_copy_goes_its_own_way(make):
    params = parameters()
    optimizer = make(params, lr=0.05)
    steps(optimizer, params, range(2))
    before = snapshot(optimizer)
    twin = copy.deepcopy(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    steps(twin, twins, range(2, 5))
    assert equal(before, snapshot(optimizer))
    steps(optimizer, params, range(2, 5))
    assert equal(params, twins)


def test_state_is_wide_for_narrow_parameters(make):
    params = parameters(dtype=torch.bfloat16)
    optimizer = make(params, lr=0.05)
    steps(optimizer, params, range(2))
    assert all(p.dtype == torch.bfloat16 for p in params)
    assert all(v.dtype == torch.float32 for v in snapshot(optimizer))


def test_narrow_parameters_take_the_steps_of_wide_ones(make):
    narrow = parameters(dtype=torch.bfloat16)
    wide = [nn.Parameter(p.detach().float()) for p in narrow]
    one, two = make(narrow, lr=0.05), make(wide, lr=0.05)
    give(narrow, 0)
    for p, q in zip(narrow, wide, strict=True):
        q.grad = p.grad.float()
    one.step()
    two.step()
    assert equal(narrow, [q.detach().bfloat16() for q in wide])


def test_maximize_ascends(make):
    up, down = parameters(), parameters()
    one = make(up, lr=0.05, maximize=True)
    two = make(down, lr=0.05)
    for seed in range(4):
        give(up, seed)
        give(down, seed)
        for p in down:
            p.grad.neg_()
        one.step()
        two.step()
    assert equal(up, down)


def test_a_batch_is_its_matrices_one_by_one(make):
    together, single = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    one, two = make(together, lr=0.05), make(single, lr=0.05, foreach=False)
    steps(one, together, range(5))
    steps(two, single, range(5))
    for p, q in zip(together, single, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_parameters_without_a_gradient_wait(make):
    params, alone = parameters(((4, 6),) * 3), parameters(((4, 6),) * 3)[:1]
    optimizer, other = make(params, lr=0.05), make(alone, lr=0.05)
    for seed in range(6):
        give(params, seed)
        if seed % 2:
            params[0].grad = None
        else:
            alone[0].grad = params[0].grad.clone()
            other.step()
        optimizer.step()
    torch.testing.assert_close(params[0], alone[0], rtol=1e-4, atol=1e-5)
    assert optimizer.state[params[0]]["step"] == 3


def test_a_convolution_is_a_matrix_and_a_vector_of_that_rule_a_row(make):
    shaped, flat = parameters(((3, 2, 2, 2), (5,))), parameters(((3, 8), (1, 5)))
    one = make([{"params": shaped, "rule": "matrix"}], lr=0.05)
    two = make(flat, lr=0.05)
    for seed in range(4):
        give(shaped, seed)
        for p, q in zip(shaped, flat, strict=True):
            q.grad = p.grad.reshape(q.shape)
        one.step()
        two.step()
    assert equal([p.detach().flatten() for p in shaped], [q.detach().flatten() for q in flat])


def test_vectors_go_to_torchs_adamw(make):
    ours, theirs = parameters(((5,), (7,), ())), parameters(((5,), (7,), ()))
    one = make(ours, lr=0.1, weight_decay=0.2, adamw_lr_ratio=0.5, adamw_betas=(0.8, 0.9))
    two = torch.optim.AdamW(theirs, lr=0.05, weight_decay=0.4, betas=(0.8, 0.9))
    one.param_groups[0]["weight_decay"] = 0.4
    steps(one, ours, range(5))
    steps(two, theirs, range(5))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_matrices_that_are_told_so_go_to_adamw(make):
    ours, theirs = parameters(((4, 6),)), parameters(((4, 6),))
    one = make([{"params": ours, "rule": "adamw"}], lr=0.05, weight_decay=0.1)
    two = torch.optim.AdamW(theirs, lr=0.05, weight_decay=0.1, betas=(0.9, 0.95))
    steps(one, ours, range(5))
    steps(two, theirs, range(5))
    torch.testing.assert_close(ours[0], theirs[0])


def test_zero_gradients_move_nothing_but_decay_does(make):
    params = parameters()
    before = copies(params)
    optimizer = make(params, lr=0.1, weight_decay=0.5)
    steps(optimizer, params, range(1), scale=0.0)
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), 0.95 * q)
    assert all(v.isfinite().all() for v in snapshot(optimizer))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_rank_one_gradients_of_any_size_give_finite_steps(make, scale):
    params = parameters(((4, 6), (6, 3)))
    optimizer = make(params, lr=0.1)
    for seed in range(5):
        give(params, seed)
        for p in params:
            p.grad = scale * torch.outer(p.grad[:, 0], p.grad[0])
        optimizer.step()
    assert all(p.isfinite().all() for p in params)
    assert all(v.isfinite().all() for v in snapshot(optimizer))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [1, 5])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(make, value, where):
    params = parameters()
    optimizer = make([(f"layer.{i}", p) for i, p in enumerate(params)], lr=0.05)
    steps(optimizer, params, range(2))
    before, state = copies(params), snapshot(optimizer)
    give(params, 2)
    params[where].grad.flatten()[2] = value
    with pytest.raises(InputError, match=rf"'layer\.{where}' is not finite; nothing was changed"):
        optimizer.step()
    assert equal(before, copies(params))
    assert equal(state, snapshot(optimizer))
    give(params, 2)
    optimizer.step()
    assert all(p.isfinite().all() for p in params)


def test_names_in_a_group_and_places_serve_messages(make):
    params = parameters()
    give(params, 0)
    params[3].grad.fill_(torch.nan)
    with pytest.raises(InputError, match="parameter 'd' is not"):
        make([{"params": params, "names": list("abcdefg")}]).step()
    with pytest.raises(InputError, match="parameter 1 of group 1 is not"):
        make([{"params": params[:2]}, {"params": params[2:]}]).step()


def test_large_finite_gradients_pass_the_check(make):
    params = parameters(((4, 6),))
    give(params, 0, scale=1e25)
    make(params).step()


def test_the_check_can_be_switched_off(make):
    params = parameters(((5,),))
    give(params, 0)
    params[0].grad[0] = torch.nan
    make(params, check_finite=False).step()
    assert params[0].isnan().any()


def test_complex_parameters_are_refused(make):
    with pytest.raises(InputError, match=r"parameter 0 of group 0 is complex: give its real"):
        make([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])


def test_a_refused_group_is_not_added(make):
    optimizer = make(parameters())
    with pytest.raises(InputError, match="lr=-1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))], "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_and_change_nothing(make):
    params, table = parameters(), nn.Embedding(5, 4, sparse=True)
    optimizer = make([*params, table.weight])
    give(params, 0)
    table(torch.tensor([1])).sum().backward()
    before = copies(params)
    with pytest.raises(InputError, match="parameter 7 of group 0 is sparse: make it dense"):
        optimizer.step()
    assert equal(before, copies(params))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr=-0.1 is not possible: give 0 or more"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is not"),
        ({"rule": "other"}, "rule='other' is not possible: give one of auto, matrix, adamw"),
        ({"adamw_betas": (0.9, 1.0)}, "adamw_betas="),
        ({"mystery": 1}, "argument='mystery' is not possible"),
    ],
)
def test_settings_out_of_range_are_sentences(make, settings, message):
    with pytest.raises(InputError, match=message):
        make(parameters(), **settings)


def test_accumulated_gradients_are_their_sum(make):
    one, two = parameters(((4, 6), (4,))), parameters(((4, 6), (4,)))
    first, second = make(one, lr=0.05), make(two, lr=0.05)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    for _ in range(4):
        first.zero_grad()
        second.zero_grad()
        (x @ one[0].T + one[1]).square().sum().backward()
        for part in x.chunk(2):
            (part @ two[0].T + two[1]).square().sum().backward()
        first.step()
        second.step()
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_a_gradient_scaler_unscales_and_skips(make):
    scaled, plain = parameters(), parameters()
    one, two = make(scaled, lr=0.05), make(plain, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(4):
        give(plain, seed)
        give(scaled, seed, scale=1024.0)
        if seed == 2:
            scaled[0].grad[0, 0] = torch.inf
        else:
            two.step()
        scaler._lazy_init_scale_growth_tracker(torch.device("cpu")) if scaler._scale is None else None
        scaler.step(one)
        scaler.update(1024.0)
    assert equal(scaled, plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_step_is_the_step(make):
    torch._dynamo.reset()
    shapes = ((4, 6), (4, 6), (5,))
    params, twins = parameters(shapes), parameters(shapes)
    optimizer, compiled = make(params, lr=0.05), make(twins, lr=0.05)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(compiled.step, backend=backend)
    for seed in range(8):
        compiled.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.05 / (seed + 1)
        give(params, seed)
        give(twins, seed)
        optimizer.step()
        step()
        if seed == 5:
            early = len(graphs)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert 1 <= early == len(graphs)
