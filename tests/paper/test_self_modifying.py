"""Self-modifying Titans and Hope: Sec. 8, each formula written out once more, its gradients by autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, normalize

from nestling.memory import selfmod
from nestling.memory.dgd import DGD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2, DotProduct, Objective
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.rule import implicit_step
from nestling.memory.scan import scan
from nestling.memory.selfmod import Inputs, SelfModifying, Slow, step_size
from nestling.memory.stack import unit
from nestling.memory.structure import Matrix, fixed
from paper.solve import close, differ, distance

T, D, HIDDEN = 7, 4, 5
ALL = ("v", "k", "eta", "alpha", "mem")
Weights = list[Tensor]


def letter(chunk_size: int = 1, **choices) -> Memory:
    """The paper's memories: residual MLPs, Delta Gradient Descent with the surprise, weight decay."""
    rules = (DGD("surprise"), DGD("surprise"))
    return Memory(rules=rules, retention=Decay("zero"), chunk_size=chunk_size, **choices)


def problem(config: SelfModifying) -> tuple[Slow, Inputs]:
    """One sequence, one head."""
    count = len(config.names)
    initial = 0.5 * torch.randn(count, 1, D, HIDDEN), 0.5 * torch.randn(count, 1, HIDDEN, D)
    slow = Slow(initial, torch.randn(1, D), torch.randn(1), torch.randn(1, D), torch.randn(1))
    return slow, Inputs(*(unit(torch.randn(1, 1, T, D)) for _ in range(3)))


def read(weights: Weights, x: Tensor) -> Tensor:
    """`M(x) = x + W1 gelu(W2 x)` (Eq. 89, 91)."""
    return x + weights[0] @ gelu(weights[1] @ x)


def write(now: Weights, boundary: Weights, k: Tensor, target: Tensor, eta: Tensor, alpha: Tensor) -> Weights:
    """Eq. 88, layer by layer: `W (alpha I - eta' x x^T) - eta' grad L`, features and gradient at the boundary.

    x is the layer's own input. `eta' = eta / (1 + eta |x|^2)` is eta bounded, the exact step of Sec. 4.5.
    """
    leaves = [w.clone().requires_grad_() for w in boundary]
    gradients = torch.autograd.grad(distance(read(leaves, k), target), leaves)
    new = []
    for w, gradient, x in zip(now, gradients, (gelu(boundary[1] @ k), k), strict=True):
        step = implicit_step(eta, x)
        new.append(w @ (alpha * torch.eye(len(x)) - step * torch.outer(x, x)) - step * gradient)
    return new


def by_hand(config: SelfModifying, slow: Slow, inputs: Inputs) -> Tensor:
    """Outputs of the formulas, token by token; boundaries lie at multiples of the one chunk length."""
    memories = {name: [w[i, 0] for w in slow.initial] for i, name in enumerate(config.names)}
    boundary, out = memories, []
    for t in range(T):
        if t % config.memory.chunk_size == 0:
            boundary = memories
        x, value = inputs.key[0, 0, t], inputs.value[0, 0, t]
        k, v = unit(read(boundary["k"], x)), unit(read(boundary["v"], value))
        q = inputs.query[0, 0, t]
        q = unit(read(boundary["q"], q)) if config.adaptive_query else q
        eta = step_size(slow.eta_weight[0] @ read(boundary["eta"], x) + slow.eta_bias[0])
        alpha = torch.sigmoid(slow.alpha_weight[0] @ read(boundary["alpha"], x) + slow.alpha_bias[0])
        targets = {name: unit(read(w, v)) if config.own_targets else v for name, w in boundary.items()}
        after = {name: write(w, boundary[name], k, targets[name], eta, alpha) for name, w in memories.items()}
        seen = {"previous": memories, "causal": after, "boundary": boundary}[config.memory.read]
        out.append(read(seen["mem"], q))
        memories = after
    return torch.stack(out)


FORMULAS = {
    "Eq. 79-82": SelfModifying(letter(), 1, (*ALL, "q"), adaptive_query=True, own_targets=False),
    "Eq. 83-89": SelfModifying(letter(read="previous"), 1, ALL),
    "Eq. 90-91": SelfModifying(letter(3, read="boundary"), 3, ALL),
}


@pytest.mark.paper("Eq. 79-91, 94-96")
@pytest.mark.parametrize("form", [selfmod.scan, selfmod.chunked])
@pytest.mark.parametrize("name", FORMULAS)
def test_self_modifying_memories(name: str, form) -> None:
    """Keys, values, rates (and queries) come from memories that learn in context, every one of them by Eq. 88.

    Eq. 79-82: all learn the value, and the content memory is read after its write. Eq. 83-88: each learns a target of
    its own, and it is read before the write. Eq. 90: reads and gradients at the boundary before the token. Keys, values
    and targets have unit length, without which the loop diverges; the rates are bounded.
    """
    config = FORMULAS[name]
    slow, inputs = problem(config)
    close(form(config, slow, inputs)[0][0, 0], by_hand(config, slow, inputs))


@pytest.mark.paper("Eq. 90")
def test_the_boundary_lies_before_the_token() -> None:
    """No output depends on later tokens, as it would at `C ceil(t / C)`, the end of the token's own chunk."""
    config = FORMULAS["Eq. 90-91"]
    slow, inputs = problem(config)
    changed = [x.clone() for x in inputs[:3]]
    for x in changed:
        x[:, :, 4] = -x[:, :, 4]
    moved = (selfmod.chunked(config, slow, inputs)[0] - selfmod.chunked(config, slow, Inputs(*changed))[0])[0, 0]
    moved = moved.abs().amax(-1) > 0
    assert moved.tolist() == [False, False, False, False, True, False, True]


@pytest.mark.paper("Eq. 77-78")
def test_with_slow_projections_it_is_one_memory() -> None:
    """Where only the content memory learns in context, keys, values and rates are slow functions of the token."""
    config = SelfModifying(letter(3), 3, ("mem",))
    slow, inputs = problem(config)
    project = {
        name: config.memory.structure.forward(fixed([w[i] for w in slow.initial]), x)
        for i, (name, x) in enumerate(zip(ALL[:4], (inputs.value, *(inputs.key,) * 3), strict=True))
    }
    eta = step_size(project["eta"] @ slow.eta_weight[0] + slow.eta_bias)
    alpha = torch.sigmoid(project["alpha"] @ slow.alpha_weight[0] + slow.alpha_bias)
    k, v = unit(project["k"]), unit(project["v"])
    content = [w[4] for w in slow.initial]
    target = unit(config.memory.structure.forward(fixed(content), v))
    state = config.memory.init_state([w.unsqueeze(0) for w in content])
    shared = SelfModifying(config.memory, 3, ("mem",), own_targets=False)
    close(selfmod.chunked(shared, slow, inputs)[0], scan(config.memory, state, inputs.query, k, v, eta, alpha)[0])
    own = selfmod.chunked(config, slow, inputs)[0]
    first = slice(0, 3)  # the target is made by the memory itself, so it stays the initial one's for a chunk only
    expected = scan(config.memory, state, *(x[:, :, first] for x in (inputs.query, k, target, eta, alpha)))[0]
    close(own[:, :, first], expected)


@pytest.mark.paper("Eq. 92-93")
@pytest.mark.parametrize("objective", [DotProduct(), L2()])
def test_the_linear_memory(objective: Objective) -> None:
    """`M (alpha I - eta k k^T) + eta v k^T` for the dot product; `- eta (M_b k - v) k^T` for L2, M_b at the boundary.

    Eq. 92's minus in front of the value would unlearn it.
    """
    k, v = normalize(torch.randn(T, D), dim=-1), torch.randn(T, D)
    eta, alpha, start = torch.rand(T), torch.rand(T), torch.randn(D, D)
    memory = Memory(Matrix(), objective, (DGD("surprise", "explicit"),), Decay("zero"), read="boundary", chunk_size=3)
    state = chunked(memory, memory.init_state((start,)), k, k, v, eta, alpha)[1]
    m = boundary = printed = start
    for t in range(T):
        boundary = m if t % 3 == 0 else boundary
        kept = alpha[t] * torch.eye(D) - eta[t] * torch.outer(k[t], k[t])
        surprise = -v[t] if isinstance(objective, DotProduct) else boundary @ k[t] - v[t]
        m = m @ kept - eta[t] * torch.outer(surprise, k[t])
        printed = printed @ kept - eta[t] * torch.outer(v[t], k[t])
    close(memory.weights(state, state.current)[0], m)
    differ(printed, m)
