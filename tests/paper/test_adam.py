"""Adam, AdaGrad and momentum as minima of one element-wise objective: App. B, with its signs put right.

g is minus the gradient there (Eq. 101), so the weights must move by `+ eta m`; `- eta m`, as Eq. 103-105 and 111 have
it, climbs.
"""

import pytest
import torch
from torch import Tensor

from paper.solve import argmin, close, differ

STEPS, WIDTH, ETA = 7, 4, 0.1


def best(g: Tensor, p: Tensor, weights: Tensor, decay: float = 0.0) -> Tensor:
    """The minimum of `sum_i weight_i |m * g_i - P|^2 + decay |m|^2` (Eq. 101)."""

    def objective(m: Tensor) -> Tensor:
        return (weights * (m * g - p).square().sum(-1)).sum() + decay * m.square().sum()

    return argmin(objective, p)


def train(optimizer_of, gradients: Tensor) -> list[Tensor]:
    """Weights from zero on, after every step of an optimizer that is given these gradients."""
    w = torch.zeros(gradients.shape[1:], requires_grad=True)
    optimizer, weights = optimizer_of([w]), [w.detach().clone()]
    for gradient in gradients:
        w.grad = gradient.clone()
        optimizer.step()
        weights.append(w.detach().clone())
    return weights


@pytest.mark.paper("Eq. 101-102")
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_minimum_of_the_element_wise_objective(decay: float) -> None:
    """`m = P sum g / (sum g^2 + lambda)`; with weights on the gradients, the same ones in both sums."""
    g, p = torch.randn(STEPS, WIDTH), torch.rand(WIDTH)
    ones = torch.ones(STEPS)
    close(best(g, p, ones, decay), p * g.sum(0) / (g.square().sum(0) + decay))
    weights = 0.9 ** torch.arange(STEPS).flip(0)
    expected = p * (weights @ g) / (weights @ g.square() + decay)
    close(best(g, p, weights, decay), expected)
    other = 0.5 ** torch.arange(STEPS).flip(0)
    differ(best(g, p, weights, decay), p * (weights @ g) / (other @ g.square() + decay))


@pytest.mark.paper("Eq. 103-104")
def test_the_sum_of_squares_as_value_gives_momentum() -> None:
    """P = sum g^2 and lambda = 0: m is the sum of g, and `W + eta m` is gradient descent with undecayed momentum.

    With the factors of Eq. 102, `H = beta2 sum g^2`, so P = H / beta2 divides by beta2.
    """
    gradients = torch.randn(STEPS, WIDTH)
    weights = train(lambda w: torch.optim.SGD(w, lr=ETA, momentum=1.0), gradients)
    for t in range(1, STEPS + 1):
        g = -gradients[:t]
        m = best(g, g.square().sum(0), torch.ones(t))
        close(m, g.sum(0))
        close(weights[t], weights[t - 1] + ETA * m)
        differ(weights[t], weights[t - 1] - ETA * m)
    g, beta2 = -gradients, 0.25
    h, p = beta2 * g.square().sum(0), g.square().sum(0)
    close(g.sum(0) * p / h, g.sum(0) / beta2)
    differ(g.sum(0) * p / h, g.sum(0) * beta2)


@pytest.mark.paper("Eq. 103, 105")
@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_adam_is_the_optimal_element_wise_memory(beta: float) -> None:
    """For beta1 = beta2 and eps = 0, Adam's step is the minimum for P = the root of the mean square.

    The gradients are weighted `beta^(t - i)`; bias correction is what makes the weights sum to one.
    """
    gradients = torch.randn(STEPS, WIDTH)
    weights = train(lambda w: torch.optim.Adam(w, lr=ETA, betas=(beta, beta), eps=0.0), gradients)
    for t in range(1, STEPS + 1):
        g, share = -gradients[:t], beta ** torch.arange(t).flip(0)
        share = share / share.sum()
        m = best(g, (share @ g.square()).sqrt(), share)
        close(weights[t], weights[t - 1] + ETA * m)
        differ(weights[t], weights[t - 1] - ETA * m)


@pytest.mark.paper("Eq. 105")
def test_with_its_usual_betas_adam_is_not_that_minimum() -> None:
    """For beta1 = 0.9, beta2 = 0.999, neither weighting has Adam's step as its minimum."""
    gradients, betas = torch.randn(STEPS, WIDTH), (0.9, 0.999)
    weights = train(lambda w: torch.optim.Adam(w, lr=ETA, betas=betas, eps=0.0), gradients)
    shares = [beta ** torch.arange(STEPS).flip(0) for beta in betas]
    value = (shares[1] @ gradients.square() / shares[1].sum()).sqrt()
    for share in shares:
        differ(weights[-1] - weights[-2], ETA * best(-gradients, value, share))


@pytest.mark.paper("Eq. 105, 111")
def test_the_whole_history_gives_adagrad_with_momentum() -> None:
    """With equal weights and P = the root of summed squares, m is `sum g / sqrt(sum g^2)`.

    It is AdaGrad's step when the first sum holds only the last gradient, which no factor beta1 on it does.
    """
    gradients = torch.randn(STEPS, WIDTH)
    weights = train(lambda w: torch.optim.Adagrad(w, lr=ETA, eps=0.0), gradients)
    for t in range(1, STEPS + 1):
        g = -gradients[:t]
        root = g.square().sum(0).sqrt()
        m = best(g, root, torch.ones(t))
        close(m, g.sum(0) / root)
        close(weights[t], weights[t - 1] + ETA * g[-1] / root)
        if t > 1:
            differ(weights[t], weights[t - 1] + ETA * m)


@pytest.mark.paper("Eq. 106-110")
def test_the_objective_with_matrix_products() -> None:
    """With matrices `m g - P`, the minimum is `sum P g^T (sum g g^T + lambda I)^-1`: the inverse on the right.

    For diagonal matrices, where sides and order do not matter, it is the element-wise one.
    """
    decay, g, p = 0.3, torch.randn(STEPS, 3, 5), torch.randn(2, 5)

    def objective(m: Tensor, g: Tensor, p: Tensor) -> Tensor:
        return (m @ g - p).square().sum() + decay * m.square().sum()

    m = argmin(lambda m: objective(m, g, p), torch.zeros(2, 3))
    h = (g @ g.mT).sum(0) + decay * torch.eye(3)
    close(m, (p @ g.mT).sum(0) @ torch.linalg.inv(h))
    diagonal, value = torch.randn(STEPS, WIDTH), torch.rand(WIDTH)
    m = argmin(lambda m: objective(m, torch.diag_embed(diagonal), value.diag()), torch.zeros(WIDTH, WIDTH))
    close(m, best(diagonal, value, torch.ones(STEPS), decay).diag())


@pytest.mark.paper("Eq. 110-111")
def test_the_full_matrix_step_is_a_regularized_leader() -> None:
    """`W_1 - eta H^-1/2 sum grad` with H the sum of outer products minimizes the linearized losses in H's metric."""
    gradients, first = torch.randn(STEPS, WIDTH), torch.randn(WIDTH)
    values, vectors = torch.linalg.eigh(gradients.mT @ gradients)
    root = vectors @ values.sqrt().diag() @ vectors.mT
    close(root @ root, sum((torch.outer(g, g) for g in gradients), torch.zeros(WIDTH, WIDTH)))

    def objective(w: Tensor) -> Tensor:
        return gradients.sum(0) @ w + (w - first) @ root @ (w - first) / (2 * ETA)

    step = ETA * torch.linalg.solve(root, gradients.sum(0))
    close(argmin(objective, first), first - step)
    assert gradients.sum(0) @ step > 0, "the step descends, so its sign is minus for gradients and plus for g"
