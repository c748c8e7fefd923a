"""Closed-form facts about Delta Gradient Descent: what a step solves, where a chunk ends, what stays bounded."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from memory.tables import close
from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum, State
from nestling.memory.objective import L2, DotProduct
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.rule import Frozen, Rule
from nestling.memory.structure import Matrix, ResidualMLP, Sight, init

D = 8


def matrix(rule: Rule, chunk_size: int) -> Memory:
    return Memory(Matrix(), L2(), (rule,), chunk_size=chunk_size)


def write(memory: Memory, state: State, k: Tensor, v: Tensor, eta: float, beta: float | None = None) -> State:
    """Write the pairs `(T, d)` with constant rates, alpha 1."""
    ones = torch.ones(k.shape[0])
    betas = None if beta is None else beta * ones
    return chunked(memory, state, k, k, v, eta * ones, ones, betas)[1]


def only(memory: Memory, state: State) -> Tensor:
    return memory.weights(state, state.current)[0]


@pytest.mark.paper("Eq. 56-57, 113")
@pytest.mark.parametrize("eta", [1e-3, 0.5, 10.0, 1e6])
def test_implicit_step_is_the_proximal_minimum(eta: float) -> None:
    """The step solves `min 1/2 |W x - u|^2 + 1/(2 eta) |W - W_t|^2` for any |x|: compare with least squares."""
    w, x, u = torch.randn(3, D), 2 * torch.randn(1, D), torch.randn(1, 3)
    rows = DGD().write(Sight(x, torch.zeros(1, 3), u), torch.tensor([eta]))
    assert rows.xi is not None
    stepped = w - rows.xi * (w @ x.mT) @ x + rows.y.mT @ x
    design = torch.cat([x * math.sqrt(eta), torch.eye(D)])
    best = torch.linalg.lstsq(design, torch.cat([u * math.sqrt(eta), w.mT])).solution.mT
    close(stepped, best, 1e-9)


@pytest.mark.parametrize("eta", [0.1, 1.0, 5.0])
def test_surprise_settles_at_half_the_value(eta: float) -> None:
    """Chunk length 1, L2: the map along x is (1 - eta) / (1 + eta), the fixed point v / 2."""
    memory = matrix(DGD("surprise"), 1)
    k, v, w = normalize(torch.randn(1, D), dim=-1), torch.randn(1, D), torch.randn(D, D)
    state = write(memory, memory.init_state((w,)), k, v, eta)
    before, after = k @ w.mT - v / 2, k @ only(memory, state).mT - v / 2
    close(after, (1 - eta) / (1 + eta) * before)
    for _ in range(300):
        state = write(memory, state, k, v, eta)
    close(k @ only(memory, state).mT, v / 2)


def test_surprise_with_the_dot_product_is_the_delta_rule() -> None:
    k, v, w = torch.randn(9, D), torch.randn(9, D), torch.randn(D, D)
    one = Memory(Matrix(), DotProduct(), (DGD("surprise"),), chunk_size=4)
    two = matrix(DGD(), 4)
    states = [write(m, m.init_state((w,)), k, v, 0.7) for m in (one, two)]
    close(states[0].current[0], states[1].current[0], 1e-12)


@pytest.mark.parametrize("theta", [0.3, 1.0])
def test_one_chunk_of_one_repeated_pair(theta: float) -> None:
    size = 16
    k, v, w = normalize(torch.randn(1, D), dim=-1), torch.randn(1, D), torch.randn(D, D)
    keys, values = k.expand(size, -1), v.expand(size, -1)
    rho = (1 - theta) ** size
    old = k @ w.mT

    def end(rule: Rule) -> Tensor:
        memory = matrix(rule, size)
        return k @ only(memory, write(memory, memory.init_state((w,)), keys, values, theta)).mT

    close(end(DGD("direct", "explicit")), rho * old + (1 - rho) * v)
    close(end(DGD("surprise", "explicit")), (2 * rho - 1) * old + (1 - rho) * v)
    close(end(GD()), old + size * theta * (v - old))


def test_surprise_undoes_the_write_in_the_next_chunk() -> None:
    size, theta = 16, 0.3
    memory = matrix(DGD("surprise", "explicit"), size)
    k, v = normalize(torch.randn(1, D), dim=-1), torch.randn(1, D)
    state, share = memory.init_state((torch.zeros(D, D),)), []
    for _ in range(3):
        state = write(memory, state, k.expand(size, -1), v.expand(size, -1), theta)
        share.append(round(float((k @ only(memory, state).mT / v).mean()), 3))
    assert share == [0.997, 0.007, 0.990]


def turning(tokens: int, turn: float) -> Tensor:
    """Unit keys that turn by `turn` radians over the tokens, in the plane of the first two axes."""
    angle = torch.linspace(0, turn, tokens + 1)[:-1]
    return torch.cat([angle.cos()[:, None], angle.sin()[:, None], torch.zeros(tokens, D - 2)], -1)


def test_spectral_radius_of_surprise_on_turning_keys() -> None:
    """A chunk maps W0 to `W0 (2 P - I)`: radius 2.25 for half a circle over 32 tokens; the direct target's is <= 1."""
    keys = turning(32, math.pi)

    def radius(target: str) -> float:
        memory = matrix(DGD(target, "explicit"), 32)  # pyright: ignore[reportArgumentType]
        state = write(memory, memory.init_state((torch.eye(D),)), keys, torch.zeros(32, D), 0.5)
        return float(torch.linalg.eigvals(only(memory, state)).abs().max())

    assert abs(radius("surprise") - 2.25) < 0.01
    assert radius("direct") <= 1 + 1e-12


KEYS = {
    "random": lambda n: normalize(torch.randn(n, D), dim=-1),
    "repeated": lambda n: normalize(torch.randn(1, D), dim=-1).expand(n, D),
    "alternating": lambda n: normalize(torch.randn(2, D), dim=-1).repeat((n + 1) // 2, 1)[:n],
    "smooth": lambda n: turning(n, n * math.pi / 32),
}


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("keys", KEYS)
def test_direct_target_never_moves_away_from_a_solution(keys: str, eta: float) -> None:
    """If some W* fits every pair, the distance to it never grows, at any step size."""
    memory, solution, size = matrix(DGD(), 8), torch.randn(D, D), 8
    k = KEYS[keys](10 * size)
    state, distance = memory.init_state((torch.randn(D, D),)), math.inf
    for part in k.split(size):
        state = write(memory, state, part, part @ solution.mT, eta)
        now = float((only(memory, state) - solution).norm())
        assert now <= distance * (1 + 1e-12)
        distance = now


def mlp_norms(memory: Memory, keys: str, eta: float, momentum: float | None) -> list[list[float]]:
    """Norms of W1 and W2 after each of 12 chunks of unit keys and values."""
    state, norms = memory.init_state(init(ResidualMLP(), D, D, 4 * D)), []
    size = memory.chunk_size
    k, v = KEYS[keys](12 * size), KEYS[keys](12 * size)
    for part, values in zip(k.split(size), v.split(size), strict=True):
        state = write(memory, state, part, values, eta, momentum)
        norms.append([float(w.norm()) for w in memory.weights(state, state.current)])
    return norms


def assert_alive(norms: list[list[float]]) -> None:
    """Every norm between 0.2 and 5 times that of the first chunk."""
    for now in norms:
        assert all(0.2 * a < b < 5 * a for a, b in zip(norms[0], now, strict=True)), (norms[0], now)


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("keys", KEYS)
def test_default_mlp_keeps_its_norm_at_any_step(keys: str, eta: float) -> None:
    """Direct target on W1, eta' / C on W2, no decay."""
    assert_alive(mlp_norms(Memory(chunk_size=8), keys, eta, None))


@pytest.mark.parametrize(
    ("eta", "hidden"), [(0.1, GD("implicit", 1 / 8)), (1.0, GD("implicit", 1 / 8)), (1e4, Frozen())]
)
@pytest.mark.parametrize("keys", KEYS)
def test_mlp_with_momentum_keeps_its_norm(keys: str, eta: float, hidden: Rule) -> None:
    """Momentum delays W2's steps past the chunk that computed them: bounded steps only, unless W2 is frozen."""
    assert_alive(mlp_norms(Memory(rules=(DGD(), hidden), momentum=Momentum(), chunk_size=8), keys, eta, 0.9))


def test_plain_gradient_descent_on_a_hidden_layer_is_not_safe() -> None:
    """Why W2's step is divided by the chunk length: one repeated token, full step, norms explode."""
    k, v = KEYS["repeated"](8 * 32), KEYS["repeated"](8 * 32)

    def growth(hidden: Rule) -> float:
        memory = Memory(rules=(DGD(), hidden), chunk_size=32)
        start = init(ResidualMLP(), D, D, 4 * D)
        state = write(memory, memory.init_state(start), k, v, 5.0)
        return float(memory.weights(state, state.current)[1].norm() / start[1].norm())

    assert growth(GD("implicit")) > 3 * growth(GD("implicit", 1 / 32))
    assert growth(GD("implicit", 1 / 32)) < 2


def test_momentum_without_its_factor_diverges() -> None:
    k, v = KEYS["repeated"](20 * 16), KEYS["repeated"](20 * 16)

    def norm(average: bool) -> float:
        memory = Memory(Matrix(), L2(), (DGD(),), momentum=Momentum(average), chunk_size=16)
        state = write(memory, memory.init_state((torch.zeros(D, D),)), k, v, 1.0, 0.9)
        return float(only(memory, state).norm())

    assert norm(True) < 2
    assert norm(False) > 5 * norm(True)


def test_a_memory_anchored_at_zero_dies_and_one_at_its_initial_state_does_not() -> None:
    k, v = KEYS["random"](80), KEYS["random"](80)
    rates = (torch.full((80,), 0.5), torch.full((80,), 0.5))

    def norms(anchor: str) -> list[float]:
        memory = Memory(retention=Decay(anchor), chunk_size=8)  # pyright: ignore[reportArgumentType]
        state = memory.init_state(init(ResidualMLP(), D, D, 4 * D))
        state = chunked(memory, state, k, k, v, *rates)[1]
        return [float(w.norm()) for w in memory.weights(state, state.current)]

    assert max(norms("zero")) < 1e-6
    assert min(norms("initial")) > 1


def test_eigenvalues_turn_negative_when_retention_is_smaller_than_the_step() -> None:
    """alpha stands outside the bracket: alpha - eta' = -1/2 flips the sign of what a unit key reads."""
    memory = matrix(DGD("direct", "explicit"), 4)
    k, w = normalize(torch.randn(1, D), dim=-1), torch.randn(D, D)
    memory = Memory(Matrix(), L2(), memory.rules, Decay("zero"), chunk_size=4)
    one = torch.ones(1)
    state = chunked(memory, memory.init_state((w,)), k, k, torch.zeros(1, D), 0.75 * one, 0.25 * one)[1]
    close(k @ only(memory, state).mT, -0.5 * (k @ w.mT))
