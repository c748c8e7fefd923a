"""The classic rules are members of the family: each against a literal loop of its own recurrence."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from memory.tables import close
from nestling.memory import chunk, diagonal
from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum
from nestling.memory.objective import L2, DotProduct, Huber, Lp, Objective
from nestling.memory.oja import Oja
from nestling.memory.omega import Omega
from nestling.memory.parallel import chunked
from nestling.memory.retention import KL, Decay, Lq, Retention
from nestling.memory.structure import Matrix, ResidualMLP, fixed, init

B, T, D, OUT = 2, 11, 4, 3


class Data:
    """Random tokens: unit keys, gates in (0, 1)."""

    def __init__(self) -> None:
        self.q, self.k = (torch.nn.functional.normalize(torch.randn(B, T, D), dim=-1) for _ in range(2))
        self.v = torch.randn(B, T, OUT)
        self.alpha, self.b, self.extra = (0.2 + 0.8 * torch.rand(B, T) for _ in range(3))


def loop(step: Callable[[Tensor, int], Tensor], q: Tensor, start: Tensor) -> Tensor:
    """Reads of `S = step(S, t)` with `q_t`."""
    out, S = [], start
    for t in range(q.shape[1]):
        S = step(S, t)
        out.append(torch.einsum("bod,bd->bo", S, q[:, t]))
    return torch.stack(out, 1)


def outer(v: Tensor, k: Tensor) -> Tensor:
    return v.unsqueeze(-1) * k.unsqueeze(-2)


def scale(x: Tensor) -> Tensor:
    return x[:, None, None]


def run(memory: Memory, x: Data, eta: Tensor, alpha: Tensor, beta: Tensor | None = None) -> Tensor:
    start = (torch.zeros(B, OUT, D),)
    return chunked(memory, memory.init_state(start), x.q, x.k, x.v, eta, alpha, beta)[0]


ONES = torch.ones(B, T, dtype=torch.float64)


@pytest.mark.paper("Eq. 15")
@pytest.mark.parametrize("size", [1, 4, 16])
def test_linear_attention(size: int) -> None:
    x = Data()
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=size)
    want = loop(lambda S, t: S + outer(x.v[:, t], x.k[:, t]), x.q, torch.zeros(B, OUT, D))
    close(run(memory, x, ONES, ONES), want, 1e-13)


@pytest.mark.parametrize("head", [0, 3])
def test_retnet(head: int) -> None:
    x, gamma = Data(), 1 - 2.0 ** (-5 - head)
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=4)
    want = loop(lambda S, t: gamma * S + outer(x.v[:, t], x.k[:, t]), x.q, torch.zeros(B, OUT, D))
    close(run(memory, x, ONES, gamma * ONES), want, 1e-13)


@pytest.mark.paper("Eq. 65")
def test_deltanet() -> None:
    x = Data()
    memory = Memory(Matrix(), L2(), (DGD(step="explicit"),), Decay("zero"), chunk_size=4)

    def step(S: Tensor, t: int) -> Tensor:
        k, b = x.k[:, t], scale(x.b[:, t])
        return S @ (torch.eye(D) - b * outer(k, k)) + b * outer(x.v[:, t], k)

    close(run(memory, x, x.b, ONES), loop(step, x.q, torch.zeros(B, OUT, D)), 1e-13)


def test_gated_deltanet() -> None:
    x = Data()

    def step(S: Tensor, t: int) -> Tensor:
        k, b = x.k[:, t], scale(x.b[:, t])
        return scale(x.alpha[:, t]) * S @ (torch.eye(D) - b * outer(k, k)) + b * outer(x.v[:, t], k)

    states = chunk.solve(None, None, x.k, x.b[..., None] * x.v, x.alpha * x.b, chunk.log_decay(x.alpha))
    close(states.read(x.q), loop(step, x.q, torch.zeros(B, OUT, D)), 1e-13)


@pytest.mark.paper("Eq. 88")
def test_dgd_with_retention_outside_the_bracket() -> None:
    """Eq. 88 with a state-free target: alpha multiplies I, not the bracket."""
    x = Data()
    memory = Memory(Matrix(), L2(), (DGD(step="explicit"),), Decay("zero"), chunk_size=4)

    def step(S: Tensor, t: int) -> Tensor:
        k, v, b = x.k[:, t], x.v[:, t], scale(x.b[:, t])
        return scale(x.alpha[:, t]) * S + b * outer(v - torch.einsum("bod,bd->bo", S, k), k)

    close(run(memory, x, x.b, x.alpha), loop(step, x.q, torch.zeros(B, OUT, D)), 1e-13)


def test_rwkv7() -> None:
    x = Data()
    decay, a = 0.3 + 0.7 * torch.rand(B, T, D), torch.rand(B, T, D)
    written = torch.randn(B, T, D)

    def step(S: Tensor, t: int) -> Tensor:
        k = x.k[:, t]
        return S @ (torch.diag_embed(decay[:, t]) - outer(k, a[:, t] * k)) + outer(x.v[:, t], written[:, t])

    start = torch.randn(B, OUT, D)
    states = diagonal.solve(None, start, written, x.v, (x.k, a * x.k), decay.log())
    close(states.read(x.q), loop(step, x.q, start), 1e-13)


def test_comba() -> None:
    x = Data()
    erase, d = 0.5 * x.extra, 0.3

    def step(S: Tensor, t: int) -> Tensor:
        k = x.k[:, t]
        transition = scale(x.alpha[:, t]) * torch.eye(D) - scale(erase[:, t]) * outer(k, k)
        return S @ transition + scale(x.b[:, t]) * outer(x.v[:, t], k)

    query = x.q - d * x.k
    states = chunk.solve(None, None, x.k, x.b[..., None] * x.v, erase, chunk.log_decay(x.alpha))
    close(states.read(query), loop(step, query, torch.zeros(B, OUT, D)), 1e-13)


@pytest.mark.paper("Eq. 66")
def test_ojanet() -> None:
    """Eq. 66, with the transposition its last term needs."""
    x = Data()
    memory = Memory(Matrix(), rules=(Oja(),), retention=Decay("zero"), chunk_size=4)
    start = 0.5 * torch.randn(B, OUT, D)

    def step(S: Tensor, t: int) -> Tensor:
        v = x.v[:, t]
        return scale(x.alpha[:, t]) * S + scale(x.b[:, t]) * outer(v, x.k[:, t] - torch.einsum("bod,bo->bd", S, v))

    got, _ = chunked(memory, memory.init_state((start,)), x.q, x.k, x.v, 0.2 * x.b, x.alpha)
    x.b = 0.2 * x.b
    close(got, loop(step, x.q, start), 1e-12)


def matrix_grad(objective: Objective, S: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gradient of the objective by autograd."""
    S = S.detach().requires_grad_()
    return torch.autograd.grad(objective.loss(torch.einsum("bod,bd->bo", S, k), v).sum(), S)[0]


def test_ttt_linear() -> None:
    """L2, gradient descent, gradients at the start of the chunk, learned initial state."""
    x, size = Data(), 4
    memory = Memory(Matrix(), L2(), (GD(),), Decay(), chunk_size=size)
    start, boundary = torch.randn(B, OUT, D), None

    def step(S: Tensor, t: int) -> Tensor:
        nonlocal boundary
        boundary = S if t % size == 0 else boundary
        assert boundary is not None
        return S - scale(x.b[:, t]) * matrix_grad(L2(), boundary, x.k[:, t], x.v[:, t])

    got, _ = chunked(memory, memory.init_state((start,)), x.q, x.k, x.v, x.b, ONES)
    close(got, loop(step, x.q, start), 1e-12)


def mlp_loop(
    objective: Objective, start: tuple[Tensor, ...], x: Data, v: Tensor, size: int, beta: Tensor | None, letter: bool
) -> Tensor:
    """`W = alpha W + S, S = beta S - (1 - beta) eta grad` for an MLP, gradients by autograd at the chunk's start."""
    weights, momentum, out = list(start), [torch.zeros_like(w) for w in start], []
    boundary = weights
    for t in range(T):
        boundary = list(weights) if t % size == 0 else boundary
        leaves = [w.detach().requires_grad_() for w in boundary]
        y = ResidualMLP().forward(fixed(leaves), x.k[:, t : t + 1])
        grads = torch.autograd.grad(objective.loss(y, v[:, t : t + 1]).sum(), leaves)
        for i, grad in enumerate(grads):
            gate = torch.zeros(B, 1, 1) if beta is None else scale(beta[:, t])
            momentum[i] = gate * momentum[i] - (1 if letter else 1 - gate) * scale(0.2 * x.b[:, t]) * grad
            weights[i] = scale(x.alpha[:, t]) * weights[i] + momentum[i]
        out.append(ResidualMLP().forward(fixed(weights), x.q[:, t : t + 1]))
    return torch.cat(out, 1)


MLPS = {
    "titans": (L2(), Momentum()),
    "titans-letter": (L2(), Momentum(average=False)),
    "dla": (DotProduct(), None),
    "yaad": (Huber(0.7), None),
    "l3": (Lp(3.0, 0.01), None),
}


@pytest.mark.parametrize("name", MLPS)
@pytest.mark.parametrize("size", [1, 4])
def test_mlp_memories(name: str, size: int) -> None:
    x, (objective, momentum) = Data(), MLPS[name]
    memory = Memory(ResidualMLP(), objective, (GD(), GD()), Decay("zero"), momentum, chunk_size=size)
    start, v = init(ResidualMLP(), D, D, 5, (B,)), torch.randn(B, T, D)
    beta = None if momentum is None else 0.9 * x.extra
    letter = momentum is not None and not momentum.average
    got, _ = chunked(memory, memory.init_state(start), x.q, x.k, v, 0.2 * x.b, x.alpha, beta)
    close(got, mlp_loop(objective, start, x, v, size, beta, letter), 1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_memora(size: int) -> None:
    """`W = c softmax(alpha log W - eta grad)`, literally on W; row sums stay c."""
    x, c = Data(), 2.0
    memory = Memory(Matrix(), L2(), (GD(),), KL(c, "zero"), read="boundary", chunk_size=size)
    start = torch.randn(B, OUT, D)
    W, out, boundary = c * start.softmax(-1), [], torch.empty(0)
    for t in range(T):
        boundary = W if t % size == 0 else boundary
        out.append(torch.einsum("bod,bd->bo", boundary, x.q[:, t]))
        grad = matrix_grad(L2(), boundary, x.k[:, t], x.v[:, t])
        W = c * (scale(x.alpha[:, t]) * W.log() - scale(x.b[:, t]) * grad).softmax(-1)
    got, state = chunked(memory, memory.init_state((start,)), x.q, x.k, x.v, x.b, x.alpha)
    close(got, torch.stack(out, 1), 1e-12)
    close(memory.weights(state, state.current)[0], W, 1e-12)
    close(W.sum(-1), torch.full((B, OUT), c))


def test_moneta() -> None:
    """`A = alpha A - eta grad, W = A / |A|_q^(q - 2)` with the L_p objective."""
    x, retention, objective = Data(), Lq(4.0, "zero", 1e-12), Lp(3.0, 0.01)
    memory = Memory(Matrix(), objective, (GD(),), retention, read="boundary", chunk_size=4)
    A = torch.randn(B, OUT, D)
    start, out, W = A, [], torch.empty(0)
    for t in range(T):
        W = A / A.flatten(1).norm(p=4, dim=1)[:, None, None] ** 2 if t % 4 == 0 else W
        out.append(torch.einsum("bod,bd->bo", W, x.q[:, t]))
        A = scale(x.alpha[:, t]) * A - scale(x.b[:, t]) * matrix_grad(objective, W, x.k[:, t], x.v[:, t])
    got, _ = chunked(memory, memory.init_state((start,)), x.q, x.k, x.v, x.b, x.alpha)
    close(got, torch.stack(out, 1), 1e-8)


@pytest.mark.parametrize("retention", [Decay(), Lq(2.0)])
def test_lq_of_two_is_decay(retention: Retention) -> None:
    z = torch.randn(2, 3, 4)
    close(retention.link(z), z, 1e-12)


@pytest.mark.paper("Eq. 68")
def test_omega() -> None:
    """Eq. 68 with the gradient it leaves out: every token descends on the last c pairs at once."""
    x, window = Data(), 3
    memory = Memory(Matrix(), L2(), (Omega(window),), Decay("zero"), chunk_size=1)
    start, gamma = torch.randn(B, OUT, D), torch.rand(B, T, window)

    def step(S: Tensor, t: int) -> Tensor:
        new = scale(x.alpha[:, t]) * S
        for i in range(max(0, t - window + 1), t + 1):
            weight = 0.3 * x.b[:, t] * gamma[:, t, i - t + window - 1]
            new = new - scale(weight) * matrix_grad(L2(), S, x.k[:, i], x.v[:, i])
        return new

    state = memory.init_state((start,))
    got, _ = chunked(memory, state, x.q, x.k, x.v, 0.3 * x.b, x.alpha, gamma=gamma)
    close(got, loop(step, x.q, start), 1e-12)


def test_huber_is_the_usual_one() -> None:
    y, v = torch.randn(5, OUT), torch.randn(5, OUT)
    close(Huber(0.7).loss(y, v).sum(), huber_loss(y, v, reduction="sum", delta=0.7))
