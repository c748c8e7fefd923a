"""Sequence models as memories of tokens: Sec. 2, 3.1, 3.2, 5."""

import pytest
import torch
from torch import Tensor, nn

from nestling.layers.attention import Attention, rotary, rotate
from nestling.memory.dgd import DGD
from nestling.memory.feature import Feature, Identity, Polynomial, Positive
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2, DotProduct
from nestling.memory.oja import Oja
from nestling.memory.parallel import chunked
from nestling.memory.retention import Decay
from nestling.memory.structure import Matrix
from paper.solve import argmin, close, differ, distance, proximal_map

T, D, OUT = 7, 4, 3


class Tokens:
    """Projections of random tokens (Eq. 14, 61): keys of unit length, values, queries."""

    def __init__(self) -> None:
        self.x = torch.randn(T, 5)
        self.k = nn.functional.normalize(self.x @ torch.randn(5, D), dim=-1)
        self.v, self.w_q = self.x @ torch.randn(5, OUT), torch.randn(5, D)
        self.q = self.x @ self.w_q


def states(memory: Memory, start: Tensor, tokens: Tokens, eta: float, alpha: float) -> tuple[list[Tensor], Tensor]:
    """The memory's matrix before the first and after every token, and what it reads."""
    state, one = memory.init_state((start,)), torch.ones(1)
    found, read = [start], []
    for t in range(T):
        now = slice(t, t + 1)
        y, state = chunked(memory, state, tokens.q[now], tokens.k[now], tokens.v[now], eta * one, alpha * one)
        found.append(memory.weights(state, state.current)[0])
        read.append(y)
    return found, torch.cat(read)


@pytest.mark.paper("Eq. 15-18, 26")
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_linear_attention_is_gradient_descent_on_the_dot_product(chunk_size: int) -> None:
    """Each state minimizes `-<M k, v> + 1/2 |M - M_t|^2`, a gradient step of size 1: `M + v k^T`, read with the query.

    The fast memory's input is what the slow projection W_q puts out (Eq. 26).
    """
    tokens = Tokens()
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=chunk_size)
    found, read = states(memory, torch.zeros(OUT, D), tokens, 1.0, 1.0)
    for t in range(T):
        k, v = tokens.k[t], tokens.v[t]
        old = found[t].clone().requires_grad_()
        close(found[t + 1], proximal_map(k, -v, found[t], 1.0))
        close(found[t + 1], found[t] - torch.autograd.grad(-(old @ k) @ v, old)[0])
        close(found[t + 1], found[t] + torch.outer(v, k))
        close(read[t], found[t + 1] @ (tokens.x[t] @ tokens.w_q))


@pytest.mark.paper("Eq. 5, 64")
@pytest.mark.parametrize("feature", [Identity(), Positive(), Polynomial(2)])
def test_hebbian_rule_is_a_decayed_half_step(feature: Feature) -> None:
    """`alpha M + eta v phi(k)^T` is `alpha M` minus a step of eta / 2 on `-2 <M phi(k), v>`."""
    tokens, eta, alpha = Tokens(), 0.4, 0.9
    memory = Memory(Matrix(), DotProduct(), (GD(),), Decay("zero"), chunk_size=4, feature=feature)
    found, _ = states(memory, torch.randn(OUT, feature.width(D)), tokens, eta, alpha)
    for t in range(T):
        old, phi = found[t].clone().requires_grad_(), feature(tokens.k[t])
        gradient = torch.autograd.grad(-2 * (old @ phi) @ tokens.v[t], old)[0]
        close(found[t + 1], alpha * found[t] + eta * torch.outer(tokens.v[t], phi))
        close(found[t + 1], alpha * found[t] - eta / 2 * gradient)
        differ(found[t + 1], alpha * found[t] - eta * gradient)


@pytest.mark.paper("Eq. 65")
def test_delta_rule_is_a_step_on_half_the_squared_error() -> None:
    """`M (I - eta k k^T) + eta v k^T` is a step on `1/2 |M k - v|^2`: the bracket stands on the right."""
    tokens, eta = Tokens(), 0.6
    rules = {"descent": (GD(), 1), "proximal, explicit": (DGD(step="explicit"), 4)}
    for rule, chunk_size in rules.values():
        memory = Memory(Matrix(), L2(), (rule,), Decay("zero"), chunk_size=chunk_size)
        found, _ = states(memory, torch.randn(OUT, D), tokens, eta, 1.0)
        for t in range(T):
            k, v, old = tokens.k[t], tokens.v[t], found[t].clone().requires_grad_()
            close(found[t + 1], found[t] - eta * torch.autograd.grad(distance(old @ k, v), old)[0])
            close(found[t + 1], found[t] @ (torch.eye(D) - eta * torch.outer(k, k)) + eta * torch.outer(v, k))
            with pytest.raises(RuntimeError, match="cannot be multiplied"):
                _ = (torch.eye(D) - eta * torch.outer(k, k)) @ found[t]


@pytest.mark.paper("Eq. 66-67")
def test_oja_is_a_half_step_on_its_objective() -> None:
    """`M + eta v (k - M^T v)^T` is a step of eta / 2 on `-2 <M k, v> + |M^T v|^2`; retention is no part of it."""
    tokens, eta = Tokens(), 0.1
    memory = Memory(Matrix(), rules=(Oja(),), retention=Decay("zero"), chunk_size=4)
    found, _ = states(memory, 0.5 * torch.randn(OUT, D), tokens, eta, 1.0)
    for t in range(T):
        k, v, old = tokens.k[t], tokens.v[t], found[t].clone().requires_grad_()
        gradient = torch.autograd.grad((old.mT @ v).square().sum() - 2 * (old @ k) @ v, old)[0]
        close(gradient, 2 * torch.outer(v, found[t].mT @ v - k))
        close(found[t + 1], found[t] - eta / 2 * gradient)


@pytest.mark.paper("Eq. 6", "Definition 1")
def test_memories_fitted_to_their_context() -> None:
    """On orthonormal keys one pass of the delta rule is the minimum of the L2 objective over the whole context.

    With one of the keys written again, it maps that key to its last value, where the Hebbian rule has the sum of both.
    """
    k, v = torch.linalg.qr(torch.randn(D, D)).Q.mT, torch.randn(D, OUT)
    eta, alpha = torch.ones(D), torch.ones(D)
    memories = [Memory(Matrix(), L2(), (DGD(step="explicit"),)), Memory(Matrix(), DotProduct(), (GD(),))]
    for memory in memories:
        state = chunked(memory, memory.init_state((torch.zeros(OUT, D),)), k, k, v, eta, alpha)[1]
        close(state.current[0], argmin(lambda m: distance(k @ m.mT, v), torch.zeros(OUT, D)))
        again = torch.randn(1, OUT)
        state = chunked(memory, state, k[:1], k[:1], again, eta[:1], alpha[:1])[1]
        rewritten = isinstance(memory.objective, L2)
        close(state.current[0] @ k[0], again[0] if rewritten else again[0] + v[0])


def weighted_mean(scores: Tensor, v: Tensor) -> Tensor:
    """The minimum of `sum_i exp(score_i / sqrt(D)) |v_i - m|^2`."""
    return argmin(lambda m: (torch.exp(scores / D**0.5) * (v - m).square().sum(-1)).sum(), v[0])


@pytest.mark.paper("Eq. 62-63")
@pytest.mark.parametrize("window", [None, 3])
def test_softmax_attention_is_a_weighted_regression(window: int | None) -> None:
    """Every output of a head minimizes `sum_i s(k_i, q_t) |v_i - m|^2` over the tokens it sees, s the exponential.

    The query is q_t for every pair; with q_i, as Eq. 63 has it inside the objective, the minimum is another one.
    """
    layer, x = Attention(D, 1, sliding_window=window).double(), torch.randn(1, T, D)
    layer.output.weight.data.copy_(torch.eye(D))
    tables = rotary(None, T, D, layer.theta, x.device)
    q, k = (rotate(project(x).unflatten(-1, (1, D)), tables).view(T, D) for project in (layer.query, layer.key))
    y, v = layer(x)[0][0], layer.value(x)[0]
    for t in range(T):
        seen = slice(0 if window is None else max(0, t - window + 1), t + 1)
        close(weighted_mean(k[seen] @ q[t], v[seen]), y[t])
        if t:
            differ(weighted_mean((k[seen] * q[seen]).sum(-1), v[seen]), y[t])


@pytest.mark.paper("Eq. 21, 69")
def test_a_feed_forward_matrix_that_learns_in_context() -> None:
    """Linear attention from a learned state, read with attention's output, is a feed-forward matrix plus writes.

    With step 0 it is that matrix; and, as its writes do not depend on it, its gradient is the matrix's own.
    """
    tokens, start = Tokens(), torch.randn(OUT, D, requires_grad=True)
    attended = torch.randn(T, D)
    memory = Memory(Matrix(), DotProduct(), (GD(),), chunk_size=4)

    def block(eta: float) -> Tensor:
        state = memory.init_state((start,))
        return chunked(memory, state, attended, tokens.k, tokens.v, torch.full((T,), eta), torch.ones(T))[0]

    plain = attended @ start.mT
    close(block(0.0), plain)
    writes = (attended @ tokens.k.mT).tril() @ tokens.v
    close(block(1.0), plain + writes)
    seed = torch.randn(T, OUT)
    gradients = [torch.autograd.grad(y, start, seed)[0] for y in (block(1.0), plain)]
    close(gradients[0], gradients[1])
