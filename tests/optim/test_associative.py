"""The general form against the optimizers that it contains, and against its own definition, in float64."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory import chunk
from nestling.memory.dgd import DGD
from nestling.memory.feature import Polynomial, Positive, Power
from nestling.memory.gd import GD
from nestling.memory.objective import L2, DotProduct, Huber
from nestling.memory.oja import Oja
from nestling.memory.retention import ChannelDecay, Decay
from nestling.memory.rule import Frozen
from nestling.memory.scan import scan
from nestling.memory.structure import MLP, Matrix, ResidualMLP
from nestling.optim import gradients
from nestling.optim.associative import AssociativeMomentum
from nestling.optim.gradients import GradientMemory, Whitening
from nestling.optim.muon import Muon
from nestling.optim.orthogonal import newton_schulz

OUT, IN, STEPS = 4, 3, 6


pytestmark = pytest.mark.usefixtures("double")


def path(optimizer, count: int = 2, steps: int = STEPS, **settings) -> list[Tensor]:
    """Parameters after every step on the same random gradients; zero at first."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(torch.zeros(OUT, IN)) for _ in range(count)]
    rule, seen = optimizer(parameters, **settings), []
    for _ in range(steps):
        for p in parameters:
            p.grad = 0.5 * torch.randn(OUT, IN, generator=generator)
        rule.step()
        seen.append(torch.stack([p.detach().clone() for p in parameters]))
    return seen


def recurrence(step, steps: int = STEPS) -> list[Tensor]:
    """Parameters after every step of `m <- step(m, G)`, `W <- W - 0.1 m` on the same gradients."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.zeros(OUT, IN) for _ in range(2)]
    memories, seen = [torch.zeros(OUT, IN) for _ in range(2)], []
    for _ in range(steps):
        for i in range(2):
            grad = 0.5 * torch.randn(OUT, IN, generator=generator)
            memories[i] = step(memories[i], grad)
            weights[i] = weights[i] - 0.1 * memories[i]
        seen.append(torch.stack(weights))
    return seen


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.paper("Eq. 33")
def test_the_defaults_are_sgd_with_momentum() -> None:
    found = path(AssociativeMomentum, lr=0.1, decay=0.9)
    same(found, path(torch.optim.SGD, lr=0.1, momentum=0.9))
    same(found, recurrence(lambda m, g: 0.9 * m + g))


class Constant:
    """A preconditioner that depends on no gradient."""

    matrix = torch.randn(OUT, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def init(self, grad: Tensor) -> Tensor:
        return grad.new_zeros(grad.shape[0], 0)

    def __call__(self, grad: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.matrix.expand(grad.shape[0], OUT, OUT), state


@pytest.mark.paper("Eq. 47")
def test_preconditioned_momentum() -> None:
    """Eq. 47, with a fixed P, not symmetric."""
    found = path(AssociativeMomentum, lr=0.1, decay=0.9, inner_lr=0.5, value=Constant())
    same(found, recurrence(lambda m, g: 0.9 * m + 0.5 * Constant.matrix @ g))


def test_whitening_is_the_root_of_the_inverse_covariance() -> None:
    """Momentum of `C^(-1/2) G`: with beta 0 and a wide gradient, of its orthogonal factor."""
    rule, grad = Whitening(beta=0.0, power=0.5, eps=1e-14), torch.randn(2, 3, 5)
    precondition, state = rule(grad, rule.init(grad))
    torch.testing.assert_close(state, grad @ grad.mT)
    o = precondition @ grad
    torch.testing.assert_close(o @ o.mT, torch.eye(3).expand(2, 3, 3))


@pytest.mark.paper("Eq. 49")
@pytest.mark.parametrize("value", [None, Constant()])
def test_delta_momentum(value) -> None:
    """Eq. 49: erase and write from the same memory."""
    p = torch.eye(OUT) if value is None else Constant.matrix
    found = path(AssociativeMomentum, lr=0.1, decay=0.9, inner_lr=0.3, objective=L2(), value=value)
    same(found, recurrence(lambda m, g: m @ (0.9 * torch.eye(IN) - 0.3 * g.mT @ g) + 0.3 * p @ g))


def test_delta_momentum_is_also_the_surprise_rule_on_the_dot_product() -> None:
    """Sec. 4.4 writes Eq. 49 as a delta rule; the two ways to say it in the algebra agree."""
    rules = (DGD("surprise", "explicit"),)
    found = path(AssociativeMomentum, lr=0.1, decay=0.9, inner_lr=0.3, rules=rules)

    def step(m: Tensor, g: Tensor) -> Tensor:
        unit = g / g.square().sum(-1, keepdim=True)
        return m @ (0.9 * torch.eye(IN) - 0.3 * unit.mT @ g) + 0.3 * unit

    same(found, recurrence(step))


@pytest.mark.paper("Eq. 51")
@pytest.mark.parametrize("feature", [Power(3.0), Power(0.5), Positive()])
def test_feature_map_momentum(feature) -> None:
    """Eq. 51, with and without a preconditioner."""
    found = path(AssociativeMomentum, lr=0.1, decay=0.9, feature=feature)
    same(found, recurrence(lambda m, g: 0.9 * m + feature(g)))
    found = path(AssociativeMomentum, lr=0.1, decay=0.9, feature=feature, value=Constant())
    same(found, recurrence(lambda m, g: 0.9 * m + Constant.matrix @ feature(g)))


def test_power_zero_with_no_memory_is_sign_descent() -> None:
    found = path(AssociativeMomentum, lr=0.1, decay=0.0, feature=Power(0.0))
    same(found, recurrence(lambda m, g: g.sign()))


@pytest.mark.paper("Eq. 52")
def test_a_non_linear_output_is_muon() -> None:
    """Eq. 52, sigma = Newton-Schulz."""
    output = partial(newton_schulz, dtype=torch.float64)
    found = path(AssociativeMomentum, lr=0.1 * 0.2 * 2, decay=0.9, output=output)
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    same(found, path(Muon, precision="float64", **settings))


def test_per_channel_retention() -> None:
    found = path(AssociativeMomentum, lr=0.1, decay=0.9, retention=ChannelDecay("zero"))
    same(found, path(AssociativeMomentum, lr=0.1, decay=0.9))


MEMORIES = {
    "matrix": GradientMemory(),
    "delta": GradientMemory(objective=L2(), normalize=True),
    "proximal": GradientMemory(objective=L2(), rules=(DGD(),)),
    "huber": GradientMemory(objective=Huber(0.5), retention=ChannelDecay("zero")),
    "mlp": GradientMemory(MLP(), L2(), retention=Decay("initial"), normalize=True, hidden=5),
    "deep": GradientMemory(MLP(3), rules=(GD(), GD(bounded=True), Frozen()), hidden=5),
    "rows": GradientMemory(ResidualMLP(), L2(), read="gradient"),
    "wide": GradientMemory(objective=L2(), feature=Polynomial(), read="gradient"),
}


@pytest.mark.parametrize("kind", MEMORIES)
def test_every_memory_runs_on_the_definition(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parallel form that the optimizer takes equals `scan`, the definition, over several gradients."""
    memory = MEMORIES[kind]
    grads = torch.randn(4, 2, OUT, IN)

    def run() -> list[Tensor]:
        initial = layers = memory.init(grads[0])
        seen = []
        for grad in grads:
            pairs = memory.pairs(memory.scaled(grad), None)
            layers = memory.write(layers, initial, pairs, 0.2, 0.9)
            seen.append(memory.update(layers, pairs.keys, IN))
        return seen

    fast = run()
    assert fast[0].shape == (2, OUT, IN)
    monkeypatch.setattr(gradients, "chunked", scan)
    same(run(), fast, 1e-10)


def test_a_gradient_is_one_token_whose_pairs_do_not_see_each_other() -> None:
    """Not a sequence of rows: their order has no effect beyond that of the values."""
    memory = MEMORIES["proximal"]
    grad, order = torch.randn(1, OUT, IN), torch.randperm(OUT)
    start = memory.write(
        memory.init(grad), memory.init(grad), memory.pairs(memory.scaled(torch.randn_like(grad)), None), 0.2, 0.9
    )
    pairs = memory.pairs(memory.scaled(grad), None)
    shuffled = gradients.Pairs(pairs.keys[:, order], pairs.values[:, order])
    same(list(memory.write(start, start, shuffled, 0.2, 0.9)), list(memory.write(start, start, pairs, 0.2, 0.9)))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("structure", [Matrix(), MLP()])
def test_a_normalized_memory_does_not_see_the_gradients_scale(structure, scale: float) -> None:
    """And it decays, so that a constant gradient's update stays where it is."""

    def run(factor: float) -> Tensor:
        parameter = torch.nn.Parameter(torch.zeros(OUT, IN))
        rule = AssociativeMomentum([parameter], lr=0.1, structure=structure, objective=L2(), normalize=True)
        parameter.grad = factor * torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
        for _ in range(400):
            before = parameter.detach().clone()
            rule.step()
        return parameter.detach() - before

    torch.testing.assert_close(run(scale), run(1.0))


@pytest.mark.parametrize("structure", [Matrix(), MLP(), MLP(3)])
def test_a_normalized_memory_stays_bounded_for_any_gradients(structure) -> None:
    """L2, the largest allowed step, adversarial gradients: rank one, repeated, flipped, huge, zero."""
    memory = GradientMemory(structure, L2(), retention=Decay("initial"), normalize=True)
    base = torch.randn(1, OUT, IN)
    spike = torch.zeros(1, OUT, IN)
    spike[0, 0, 0] = 1e6
    rank_one = torch.randn(1, OUT, 1) @ torch.randn(1, 1, IN)
    cycle = [base, base, -base, rank_one, rank_one, spike, torch.zeros_like(base), 1e-9 * base]
    initial = layers = memory.init(base)
    for step in range(2000):
        pairs = memory.pairs(memory.scaled(cycle[step % len(cycle)]), None)
        layers = memory.write(layers, initial, pairs, 1.0, 0.95)
    assert max(float(layer.abs().max()) for layer in layers) < 100


def test_the_rms_of_a_step_is_the_one_asked_for() -> None:
    found = path(AssociativeMomentum, lr=0.1, rms=0.2)
    torch.testing.assert_close((found[3] - found[2]).square().mean((-2, -1)).sqrt(), torch.full((2,), 0.02))


def test_choices_survive_a_copy() -> None:
    """`copy.deepcopy` takes torch's way, which knows of groups and state only."""
    rule = AssociativeMomentum([torch.nn.Parameter(torch.zeros(2, 2))], feature=Power(3.0), output=newton_schulz)
    twin = copy.deepcopy(rule)
    assert twin.memory == rule.memory
    assert twin.output is newton_schulz


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"feature": Polynomial(), "read": "state"}, "read='gradient'"),
        ({"read": "both"}, "'state', 'gradient'"),
        ({"hidden": 0}, "at least 1"),
        ({"decay": 1.1}, "decay"),
        ({"inner_lr": -1.0}, "inner_lr"),
        ({"rms": 0.0}, "rms"),
        ({"rules": (GD(), GD())}, "one a layer"),
        ({"rules": (Oja(),)}, "GD or DGD"),
        ({"rules": (DGD(),), "objective": DotProduct()}, "L2"),
        ({"structure": ResidualMLP()}, "must equal value width"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(settings: dict, words: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(OUT, IN))
    parameter.grad = torch.ones(OUT, IN)
    with pytest.raises(InputError, match=words):
        AssociativeMomentum([parameter], **settings).step()
    assert not parameter.any()


@pytest.mark.parametrize("bad", [{"beta": 1.0}, {"power": 0.0}, {"eps": 0.0}])
def test_whitening_refuses_what_it_cannot_do(bad: dict) -> None:
    with pytest.raises(InputError, match="Whitening"):
        Whitening(**bad)


def test_the_algebra_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    solve = chunk.solve
    monkeypatch.setattr(chunk, "solve", lambda *a, **k: calls.append(k["rank"]) or solve(*a, **k))
    path(AssociativeMomentum, steps=1)
    assert calls == [OUT]
