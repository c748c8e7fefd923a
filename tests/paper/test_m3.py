"""M3: Sec. 7.2."""

import pytest
import torch
from torch import Tensor

from nestling.optim import M3
from nestling.optim.orthogonal import newton_schulz
from paper.solve import close, differ

OUT, IN, FREQUENCY, STEPS, ALPHA, EPS, RATE = 3, 4, 3, 11, 0.5, 1e-3, 0.01
BETAS = (0.9, 0.3, 0.7)


def path(grads: Tensor, **settings) -> list[Tensor]:
    """Weights after every step of M3 from zero on."""
    w = torch.zeros(OUT, IN, requires_grad=True)
    plain = {"lr": RATE, "weight_decay": 0.0, "precision": "float64", "frequency": FREQUENCY}
    optimizer, seen = M3([w], **plain | settings), []
    for grad in grads:
        w.grad = grad.clone()
        optimizer.step()
        seen.append(w.detach().clone())
    return seen


def algorithm(grads: Tensor, extra: int = 0) -> list[Tensor]:
    """Algorithm 1 line by line; its line 3 sums f gradients, and with `extra` = 1 the f + 1 that are printed."""
    orthogonal = lambda m: newton_schulz(m, dtype=torch.float64)  # noqa: E731
    w, first, slow, second = (torch.zeros(OUT, IN) for _ in range(4))
    seen = []
    for k in range(-(-STEPS // FREQUENCY)):
        last = k * FREQUENCY
        slow = slow + BETAS[2] * grads[max(0, last - FREQUENCY - extra) : last].sum(0)
        slow_output = orthogonal(slow)
        for grad in grads[last : last + FREQUENCY]:
            first = first + BETAS[0] * grad
            second = second + BETAS[1] * grad.square()
            w = w - RATE * (orthogonal(first) + ALPHA * slow_output) / (second.sqrt() + EPS)
            seen.append(w)
    return seen


@pytest.mark.paper("Eq. 75", "Algorithm 1")
def test_the_algorithm_to_the_letter() -> None:
    """With sums it is Algorithm 1; the slow momentum, like the fast one, adds the f gradients since its last update."""
    grads = torch.randn(STEPS, OUT, IN)
    found = path(grads, betas=BETAS, alpha=ALPHA, eps=EPS, accumulate="sum")
    for w, expected in zip(found, algorithm(grads), strict=True):
        close(w, expected, 1e-9)
    differ(found[-1], algorithm(grads, extra=1)[-1])


@pytest.mark.paper("Eq. 75")
def test_the_slow_momentum_points_where_the_fast_one_does() -> None:
    """Under a constant gradient both orthogonalize to the same, so they add up; with a minus they would cancel."""
    grads, last = torch.randn(OUT, IN).expand(7, OUT, IN), {}
    for alpha in (0.0, ALPHA):
        seen = path(grads, alpha=alpha, accumulate="sum")
        last[alpha] = seen[6] - seen[5]
    close(last[ALPHA], (1 + ALPHA) * last[0.0])


@pytest.mark.paper("Algorithm 1")
@pytest.mark.parametrize("accumulate", ["sum", "average"])
def test_sums_fade_and_averages_do_not(accumulate: str) -> None:
    """Under a constant gradient the printed second moment only grows, so steps fall like 1 / sqrt(t).

    And gradients a thousand times smaller make steps a thousand times larger.
    """
    grad, settings = torch.randn(OUT, IN), {"alpha": 0.0, "accumulate": accumulate, "eps": 1e-9}
    seen = path(grad.expand(401, OUT, IN), **settings)
    ratio = float((seen[400] - seen[399]).norm() / (seen[100] - seen[99]).norm())
    assert ratio == pytest.approx(0.5 if accumulate == "sum" else 1.0, rel=0.01)
    growth = float(path(1e-3 * grad[None], **settings)[0].norm() / seen[0].norm())
    assert growth == pytest.approx(1000 if accumulate == "sum" else 1, rel=0.01)
