"""Titans' and Miras' memories as their papers write them, differentiated by autograd, against memory/run.py."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, huber_loss

from memory.tables import CHUNK, HIDDEN, D, close
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum
from nestling.memory.objective import L2, DotProduct, Huber, Lp
from nestling.memory.retention import KL, Decay, Lq
from nestling.memory.run import Inputs, run

LENGTH = 2 * CHUNK + 3
Weights = list[Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def forward(weights: Weights, x: Tensor) -> Tensor:
    return x + weights[0] @ gelu(weights[1] @ x)


def gradients(weights: Weights, loss: Loss, k: Tensor, v: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss(forward(weights, k), v), weights))


def tokens(inputs: Inputs) -> Iterator[tuple[Tensor, ...]]:
    """q, k, v, eta, alpha, beta of one token after the other."""
    q, k, v, eta, log_alpha = (x[0, 0] for x in inputs[:5])
    beta = torch.zeros_like(eta) if inputs.beta is None else inputs.beta[0, 0]
    return zip(q, k, v, eta, log_alpha.exp(), beta, strict=True)


def literal(
    start: Weights,
    inputs: Inputs,
    loss: Loss,
    link: Callable[[Tensor], Tensor] = lambda z: z,
    forget: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    at_boundary: bool = False,
) -> Tensor:
    """Outputs of a loop over the tokens: gradients at the chunk's start, `forget(state, alpha, step)` a new state."""
    forget = forget or (lambda z, alpha, step: alpha * z + step)
    z, momentum, outputs, boundary = start, [torch.zeros_like(w) for w in start], [], start
    for t, (q, k, v, eta, alpha, beta) in enumerate(tokens(inputs)):
        if t % CHUNK == 0:
            boundary = [link(w).detach().requires_grad_() for w in z]
        steps = [-eta * g for g in gradients(boundary, loss, k, v)]
        momentum = [beta * s + step for s, step in zip(momentum, steps, strict=True)]
        z = [forget(w, alpha, s) for w, s in zip(z, momentum, strict=True)]
        outputs.append(forward(boundary if at_boundary else [link(w) for w in z], q))
    return torch.stack(outputs).detach()


def problem(momentum: bool = False) -> tuple[Weights, Inputs]:
    q, k, v = (torch.randn(1, 1, LENGTH, D) for _ in range(3))
    eta, alpha = 0.2 * torch.rand(1, 1, LENGTH), 0.5 + 0.5 * torch.rand(1, 1, LENGTH)
    beta = torch.rand(1, 1, LENGTH) if momentum else None
    return [torch.randn(D, HIDDEN), torch.randn(HIDDEN, D)], Inputs(q, k, v, eta, alpha.log(), beta)


def ours(start: Weights, inputs: Inputs, objective, retention, **choices) -> Tensor:
    memory = Memory(objective=objective, rules=(GD(), GD()), retention=retention, chunk_size=CHUNK, **choices)
    return run(memory, [w[None] for w in start], inputs)[0][0, 0]


def squares(y: Tensor, v: Tensor) -> Tensor:
    return (y - v).square().sum() / 2


def test_titans() -> None:
    """S_t = beta_t S_{t-1} - eta_t grad, W_t = alpha_t W_{t-1} + S_t (arXiv 2501.00663, equations 13 and 14)."""
    start, inputs = problem(momentum=True)
    found = ours(start, inputs, L2(), Decay("zero"), momentum=Momentum(average=False))
    close(found, literal(start, inputs, squares))


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (DotProduct(), lambda y, v: -(y * v).sum()),
        (Huber(0.7), lambda y, v: huber_loss(y, v, reduction="sum", delta=0.7)),
        (Lp(3.0, 1e-9), lambda y, v: (y - v).abs().pow(3).sum() / 3),
    ],
    ids=["dla", "yaad", "moneta"],
)
def test_losses(objective, loss: Loss) -> None:
    """W_t = alpha_t W_{t-1} - eta_t grad (arXiv 2505.23735; 2504.13173, equations 10 and 14)."""
    start, inputs = problem()
    close(ours(start, inputs, objective, Decay("zero")), literal(start, inputs, loss))


def test_moneta() -> None:
    """A_t = alpha_t A_{t-1} - eta_t grad, W_t = A_t / |A_t|_4^2 at a chunk's end (arXiv 2504.13173, equation 24)."""
    start, inputs = problem()

    def link(z: Tensor) -> Tensor:
        return z / z.abs().pow(4).sum().pow(1 / 4).square()

    expected = literal(start, inputs, lambda y, v: (y - v).abs().pow(3).sum() / 3, link, at_boundary=True)
    close(ours(start, inputs, Lp(3.0, 1e-9), Lq(4.0, "zero", 1e-14), read="boundary"), expected)


def test_memora() -> None:
    """W_t = c softmax(alpha_t log W_{t-1} - eta_t grad) (arXiv 2504.13173, equation 21)."""
    start, inputs = problem()
    expected = literal(
        [2 * w.softmax(-1) for w in start],
        inputs,
        squares,
        forget=lambda w, alpha, step: 2 * (alpha * w.log() + step).softmax(-1),
        at_boundary=True,
    )
    close(ours(start, inputs, L2(), KL(2.0, "zero"), read="boundary"), expected)
