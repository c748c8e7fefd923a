"""What the optimizers promise of their steps, whatever the gradients."""

import math

import pytest
import torch

from nestling.errors import InputError
from nestling.optim import M3, AdaMuon, DeltaMomentum, Muon
from nestling.optim.delta import delta_momentum
from optim.conftest import copies, give, parameters, steps

SHAPES = ((4, 6), (4, 6), (6, 3), (1, 5), (3, 2, 2, 2))
FREE_OF_SCALE = {"muon": Muon, "m3": lambda p, **s: M3(p, frequency=3, **s), "adamuon": AdaMuon}


def walk(make, scale=1.0, count=8, **settings):
    """Where matrices are after some steps along gradients of this scale."""
    params = parameters(SHAPES, torch.float64)
    steps(make(params, lr=0.05, weight_decay=0.0, precision="float64", **settings), params, range(count), scale)
    return copies(params)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e3, 1e9])
@pytest.mark.parametrize("make", FREE_OF_SCALE.values(), ids=FREE_OF_SCALE)
def test_the_scale_of_the_gradient_has_no_effect(make, scale):
    for a, b in zip(walk(make), walk(make, scale), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_the_letter_of_algorithm_1_depends_on_the_scale_and_fades():
    """Why M3 differs from the paper's sums: a thousandth of the gradient, a thousandfold step; and it shrinks."""
    start = parameters(SHAPES, torch.float64)
    letter = {"accumulate": "sum", "eps": 1e-12}
    small, large = walk(M3, 1e-3, 1, **letter), walk(M3, 1.0, 1, **letter)
    for p, a, b in zip(start, small, large, strict=True):
        torch.testing.assert_close(a - p, 1e3 * (b - p), rtol=1e-6, atol=0.0)
    params = parameters(SHAPES[:1], torch.float64)
    optimizer = M3(params, lr=1.0, weight_decay=0.0, precision="float64", alpha=0.0, **letter)
    sizes = []
    for _ in range(400):
        give(params, 0)
        before = params[0].detach().clone()
        optimizer.step()
        sizes.append((params[0] - before).norm().item())
    assert sizes[-1] == pytest.approx(sizes[0] / 20, rel=1e-6)


@pytest.mark.parametrize("make", [*FREE_OF_SCALE.values(), DeltaMomentum], ids=[*FREE_OF_SCALE, "delta"])
def test_under_a_constant_gradient_the_step_does_not_shrink(make):
    """10,000 steps."""
    params = parameters(((4, 6),))
    optimizer = make(params, lr=1e-3, weight_decay=0.0, precision="float32")
    give(params, 0)
    for step in range(10_000):
        if step in (50, 9_999):
            before = params[0].detach().double()
        optimizer.step()
        if step == 50:
            early = (params[0].detach().double() - before).norm()
    torch.testing.assert_close((params[0].detach().double() - before).norm(), early, rtol=1e-2, atol=0.0)


def quintic(sigma):
    """The scalar polynomial, five times."""
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return sigma


@pytest.mark.parametrize("shape", [(4, 6), (6, 3), (1, 5), (5, 5)])
def test_singular_values_of_a_step_are_the_scalar_quintics(shape):
    """Muon without a past: of the gradient's, divided by its norm."""
    params = parameters((shape,), torch.float64)
    optimizer = Muon(params, lr=1.0, momentum=0.0, weight_decay=0.0, adjust_lr="original", precision="float64")
    before = copies(params)
    steps(optimizer, params, [0])
    o = (before[0] - params[0].detach()) / math.sqrt(max(1, shape[0] / shape[1]))
    sigma = torch.linalg.svdvals(params[0].grad / params[0].grad.norm())
    torch.testing.assert_close(torch.linalg.svdvals(o).sort().values, quintic(sigma).sort().values)


def test_m3_is_algorithm_1_with_averages():
    """Written out for one matrix: fast and slow momentum, second moment, the scaling."""
    params = parameters(((4, 6),), torch.float64)
    optimizer = M3(
        params, lr=0.1, betas=(0.9, 0.8, 0.7), alpha=0.5, frequency=3, eps=0.2, weight_decay=0.3, precision="float64"
    )
    w, m1, m2, v, gathered = params[0].detach().clone(), 0.0, 0.0, 0.0, 0.0
    o2 = torch.zeros(4, 6, dtype=torch.float64)
    for step in range(1, 11):
        give(params, step)
        g = params[0].grad.clone()
        optimizer.step()
        if step % 3 == 1 and step > 1:
            m2, gathered = 0.7 * m2 + 0.3 * gathered, 0.0
            o2 = orthogonal(m2)
        gathered = gathered + g
        m1, v = 0.9 * m1 + 0.1 * g, 0.8 * v + 0.2 * g**2
        root = (v / (1 - 0.8**step)).sqrt()
        d = (orthogonal(m1) + 0.5 * o2) / (root + 0.2 * root.square().mean().sqrt())
        w = (1 - 0.1 * 0.3) * w - 0.1 * 0.2 * d / d.square().mean().sqrt()
        torch.testing.assert_close(params[0].detach(), w)


def test_m3_as_printed():
    """accumulate="sum", line by line of Algorithm 1."""
    params = parameters(((4, 6),), torch.float64)
    optimizer = M3(
        params,
        lr=0.1,
        betas=(0.9, 0.8, 0.7),
        alpha=0.5,
        frequency=2,
        eps=0.01,
        weight_decay=0.0,
        precision="float64",
        accumulate="sum",
    )
    w, m1, m2, v, gathered = params[0].detach().clone(), 0.0, 0.0, 0.0, 0.0
    o2 = torch.zeros(4, 6, dtype=torch.float64)
    for step in range(1, 8):
        give(params, step)
        g = params[0].grad.clone()
        optimizer.step()
        if step % 2 == 1 and step > 1:
            m2, gathered = m2 + 0.7 * gathered, 0.0
            o2 = orthogonal(m2)
        gathered = gathered + g
        m1, v = m1 + 0.9 * g, v + 0.8 * g**2
        w = w - 0.1 * (orthogonal(m1) + 0.5 * o2) / (v.sqrt() + 0.01)
        torch.testing.assert_close(params[0].detach(), w)


def test_m3_without_a_slow_memory_has_no_use_for_its_period():
    for a, b in zip(walk(M3, alpha=0.0, frequency=1), walk(M3, alpha=0.0, frequency=5), strict=True):
        torch.testing.assert_close(a, b)


def test_adamuon_written_out():
    params = parameters(((4, 6),), torch.float64)
    optimizer = AdaMuon(params, lr=0.1, betas=(0.9, 0.8), weight_decay=0.0, precision="float64")
    w, m, v = params[0].detach().clone(), 0.0, 0.0
    for step in range(5):
        give(params, step)
        g = params[0].grad.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        o = orthogonal(m.sign())
        v = 0.8 * v + 0.2 * o**2
        d = o / v.sqrt()
        w = w - 0.1 * 0.2 * d / d.square().mean().sqrt()
        torch.testing.assert_close(params[0].detach(), w)


def orthogonal(x):
    """Newton-Schulz by the singular values."""
    u, s, v = torch.linalg.svd(x / x.norm().clamp(min=1e-300), full_matrices=False)
    return u @ torch.diag(quintic(s)) @ v


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_is_torchs(nesterov, adjust, precision, monkeypatch):
    """Bit for bit where the products are the same; torch's Newton-Schulz runs in the dtype of `bfloat16()`."""
    if precision == "float32":
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    shapes = ((8, 8), (4, 16), (16, 4), (1, 7))
    ours, theirs = parameters(shapes), parameters(shapes)
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    steps(Muon(ours, adjust_lr=adjust, precision=precision, **settings), ours, range(10))
    steps(torch.optim.Muon(theirs, adjust_lr_fn=adjust, **settings), theirs, range(10))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", [0.3, 0.9, 1.9])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (1, 5), (5, 1)])
def test_delta_momentums_bracket_never_expands(shape, c):
    """Any gradients: random, rank one, flat spectra, huge, tiny, zero."""
    generator = torch.Generator().manual_seed(0)
    alpha = 0.9
    for trial in range(60):
        g = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (trial % 13 - 6)
        if trial % 4 == 1:
            g = torch.outer(g[:, 0], g[0])
        if trial % 4 == 2:
            u, _, v = torch.linalg.svd(g, full_matrices=False)
            g = u @ v * 1e8
        if trial == 59:
            g = torch.zeros_like(g)
        bracket = _bracket(g, alpha, c)
        values = torch.linalg.eigvalsh(bracket)
        assert values.max() <= alpha + 1e-12
        assert values.min() >= alpha - c - 1e-9
        assert torch.linalg.matrix_norm(bracket, 2) <= 1 + 1e-9
        torch.testing.assert_close(bracket, bracket.mT)


def _bracket(g, alpha, c):
    """`alpha I - xi G^T G`: what a step makes of the memory I, less what it writes; zeros fill up the rows of G."""
    columns = g.shape[1]
    rows = max(g.shape)
    size = g.abs().max().clamp(min=1e-300)
    gradient = torch.zeros(1, rows, columns, dtype=g.dtype)
    gradient[0, : len(g)] = g
    memory = size * torch.eye(rows, columns, dtype=g.dtype).unsqueeze(0)
    written = delta_momentum(gradient, torch.zeros_like(memory), alpha, c, math.inf, "gradient")
    return (delta_momentum(gradient, memory, alpha, c, math.inf, "gradient") - written)[0, :columns] / size


def test_delta_momentum_stays_bounded_under_adversarial_gradients():
    """Gradients that point where the momentum is largest, with the sign that the erasure turns."""
    momentum = torch.randn(1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in range(500):
        u, _, v = torch.linalg.svd(momentum[0])
        g = torch.outer(u[:, 0], v[0]).unsqueeze(0) * (1.0 if step % 2 else -1.0)
        delta_momentum(g, momentum, 0.9, 1.9, math.inf, "gradient")
        assert momentum.norm() < 100


@pytest.mark.parametrize(("write", "eta"), [("gradient", 1.0), ("delta", 0.01)])
def test_delta_momentum_is_equation_49_where_its_step_is_small(write, eta):
    momentum = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = momentum @ (0.9 * torch.eye(6, dtype=torch.float64) - 0.01 * g.mT @ g) + eta * g
    torch.testing.assert_close(delta_momentum(g, momentum.clone(), 0.9, 0.9, 0.01, write), expected)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (Muon, {"momentum": 1.0}, "momentum=1.0 is not possible: give a number in"),
        (Muon, {"adjust_lr": "x"}, "adjust_lr='x' is not possible: give one of match_rms_adamw, original"),
        (Muon, {"precision": "float16"}, "precision='float16'"),
        (Muon, {"ns_steps": 0}, "ns_steps=0"),
        (M3, {"betas": (0.9, 0.9)}, "betas="),
        (M3, {"alpha": -1.0}, "alpha=-1.0"),
        (M3, {"frequency": 0}, "frequency=0"),
        (M3, {"eps": 0.0}, "eps=0.0"),
        (M3, {"accumulate": "mean"}, "accumulate='mean' is not possible: give average or sum"),
        (AdaMuon, {"betas": (0.9, 1.0)}, "betas="),
        (AdaMuon, {"eps": 0.0}, "eps=0.0"),
        (DeltaMomentum, {"alpha": 1.1}, "alpha=1.1"),
        (DeltaMomentum, {"c": 2.0}, "c=2.0"),
        (DeltaMomentum, {"xi_max": 0.0}, "xi_max=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, settings, message):
    with pytest.raises(InputError, match=message):
        make(parameters(SHAPES), **settings)
