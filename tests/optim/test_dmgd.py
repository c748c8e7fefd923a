"""Deep momentum: what it contains, what it promises for any gradients, and that it trains; mathematics in float64."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from nestling.errors import InputError
from nestling.memory.objective import L2, DotProduct
from nestling.optim import DMGD
from nestling.optim.orthogonal import newton_schulz

OUT, IN = 5, 4
SIGMA = partial(newton_schulz, dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("double")


def gradients(steps: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(OUT, IN, generator=generator) for _ in range(steps)]


def path(grads: list[Tensor], **settings) -> tuple[list[Tensor], DMGD]:
    """Parameters after every step from zero, and the optimizer."""
    weight = nn.Parameter(torch.zeros(OUT, IN))
    rule, seen = DMGD([weight], lr=0.1, **settings), []
    for grad in grads:
        weight.grad = grad
        rule.step()
        seen.append(weight.detach().clone())
    return seen, rule


LINEAR = {"layers": 1, "objective": DotProduct(), "normalize": False, "output": None, "rms": None, "inner_lr": 1.0}


@pytest.mark.paper("Eq. 50")
def test_a_linear_memory_of_the_dot_product_holds_the_momentum_buffer() -> None:
    """Its state is SGD's buffer, and read at the identity it gives SGD's steps: `W - lr m`."""
    grads = gradients(6)
    found, rule = path(grads, **LINEAR)
    weight = nn.Parameter(torch.zeros(OUT, IN))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for grad, ours in zip(grads, found, strict=True):
        weight.grad = grad
        sgd.step()
        torch.testing.assert_close(ours, weight.detach())
    (state,) = rule.state.values()
    torch.testing.assert_close(state["layer0"], sgd.state[weight]["momentum_buffer"])


@pytest.mark.paper("Eq. 50")
def test_the_letter_reads_a_linear_memory_at_the_gradient_and_is_no_momentum() -> None:
    """Eq. 50's `m(u)` with the dot product: the gradient times an average of `G^T G`, for values `v = u`."""
    grads = gradients(5)
    found, _ = path(grads, **LINEAR, read="gradient")
    weight, memory = torch.zeros(OUT, IN), torch.zeros(IN, IN)
    for grad, ours in zip(grads, found, strict=True):
        memory = 0.9 * memory + grad.mT @ grad
        weight = weight - 0.1 * grad @ memory.mT
        torch.testing.assert_close(ours, weight)
    momentum, _ = path(grads, **LINEAR)
    assert not torch.allclose(found[-1], momentum[-1])


@pytest.mark.paper("Eq. 50")
def test_one_deep_step_is_the_gradient_of_its_objective() -> None:
    """Autograd's gradient of the inner loss, the decay to the start, and the reading, written out."""
    first, second = gradients(2)
    hidden_rate, decay, eta = 3.0, 0.9, 0.7
    settings = {"output": None, "rms": None, "hidden_rate": hidden_rate, "decay": decay, "inner_lr": eta, "hidden": 3}
    found, rule = path([first, second], **settings)
    (state,) = rule.state.values()
    start = [state["anchor0"], state["anchor1"]]
    torch.testing.assert_close(start[1] @ start[1].mT, 0.49 * torch.eye(3))
    assert not start[0].any()

    layers, weight = list(start), torch.zeros(OUT, IN)
    for grad, ours in zip((first, second), found, strict=True):
        u = grad / grad.square().mean().sqrt()
        z = u @ layers[1].mT
        a = z.tanh()
        error = a @ layers[0].mT - OUT**0.5 * torch.eye(OUT)
        inner = (error @ layers[0]) * (1 - a * a)
        # The hidden layer's gradient at each row is kept shorter than 1.
        inner = inner / (1 + inner.square().sum(-1, keepdim=True)).sqrt()
        steps = [error.mT @ a / (OUT * 3), hidden_rate * inner.mT @ u / (OUT * IN)]
        layers = [s + decay * (w - s) - eta * g for s, w, g in zip(start, layers, steps, strict=True)]
        weight = weight - 0.1 * ((IN**0.5 * torch.eye(IN)) @ layers[1].mT).tanh().matmul(layers[0].mT).mT
        torch.testing.assert_close(ours, weight)


@pytest.mark.parametrize("read", ["state", "gradient"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_gradients_scale_has_no_effect(scale: float, layers: int, read: str) -> None:
    grads = gradients(4)
    found = path([scale * g for g in grads], layers=layers, read=read, output=SIGMA)[0]
    for a, b in zip(found, path(grads, layers=layers, read=read, output=SIGMA)[0], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("read", ["state", "gradient"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_negated_loss_takes_the_negated_step(layers: int, read: str) -> None:
    """For the letter, whose values turn with its keys, as for the state, whose values do not."""
    grads = gradients(4)
    found = path([-g for g in grads], layers=layers, read=read, output=SIGMA)[0]
    for a, b in zip(found, path(grads, layers=layers, read=read, output=SIGMA)[0], strict=True):
        torch.testing.assert_close(a, -b)


def test_a_constant_gradient_keeps_its_step() -> None:
    found, _ = path(gradients(1) * 600, output=SIGMA)
    steps = [float((b - a).norm()) for a, b in pairwise(found)]
    assert min(steps[50:]) > 0.9 * steps[50]
    down = -(found[-1] * gradients(1)[0]).sum() / found[-1].norm() / gradients(1)[0].norm()
    assert down > 0.5


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("objective", [L2(), DotProduct()])
def test_the_memory_stays_bounded_for_any_gradients(objective, layers: int) -> None:
    """Repeated, flipped, rank one, sparse, huge, tiny and zero, for 500 steps of the default rates."""
    base, other = gradients(2)
    spike = torch.zeros(OUT, IN)
    spike[0, 0] = 1e9
    rank_one = torch.outer(base[:, 0], base[0])
    cycle = [base, base, -base, rank_one, rank_one, rank_one, spike, 0 * base, 1e-9 * other, spike, other]
    found, rule = path((cycle * 50)[:500], layers=layers, objective=objective, output=SIGMA)
    assert found[-1].isfinite().all()
    (state,) = rule.state.values()
    assert max(float(v.abs().max()) for v in state.values()) < 3000


def regression(optimizer, steps: int = 150) -> float:
    """Loss after so many steps of a small MLP on a random teacher, batches of 64."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    rule = optimizer(model.parameters())
    generator = torch.Generator().manual_seed(3)
    schedule = torch.optim.lr_scheduler.LinearLR(rule, 1.0, 0.05, steps)

    def loss(rows: int) -> Tensor:
        x = torch.randn(rows, 16, generator=generator)
        return (model(x) - teacher(x).detach()).square().mean()

    for _ in range(steps):
        rule.zero_grad()
        loss(64).backward()
        rule.step()
        schedule.step()
    return float(loss(2048).detach())


def test_it_trains_a_small_network_as_well_as_adamw() -> None:
    """Both at the best of the same learning rates."""
    rates = (0.005, 0.01, 0.02)
    ours = min(regression(partial(DMGD, lr=rate, output=partial(newton_schulz, dtype=torch.float32))) for rate in rates)
    adamw = min(regression(partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)) for rate in rates)
    print(ours, adamw)
    assert ours < 1.1 * adamw


def test_settings_out_of_range_are_refused() -> None:
    weight = [nn.Parameter(torch.zeros(OUT, IN))]
    with pytest.raises(InputError, match="1 layer or more"):
        DMGD(weight, layers=0)
    with pytest.raises(InputError, match="rate >= 0"):
        DMGD(weight, hidden_rate=-1.0)
