"""The sequence-level recurrence against its token-by-token definition: values, states and gradients."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from memory.tables import close
from nestling.errors import InputError
from nestling.memory.recurrence import recur, recur_scan

LEAD, D, OUT = (2, 3), 4, 3
KINDS = list(itertools.product((False, True), ("none", "key", "pair")))


class Inputs:
    """Random tokens: unit keys; `decay` the largest, in nats a token."""

    def __init__(self, length: int, channels: bool, erase: str, decay: float = 1.0, lead: tuple = LEAD) -> None:
        self.q, self.k, self.p, self.r = (normalize(torch.randn(*lead, length, D), dim=-1) for _ in range(4))
        self.v, self.state = torch.randn(*lead, length, OUT), torch.randn(*lead, OUT, D)
        self.log_alpha = -decay * torch.rand(*lead, length, *((D,) if channels else ()))
        self.p = self.p * 1.5 * torch.rand(*lead, length, 1)
        self.erase = erase

    def tensors(self) -> list[Tensor]:
        pair = {"none": [], "key": [self.p], "pair": [self.p, self.r]}[self.erase]
        return [self.q, self.k, self.v, self.log_alpha, self.state, *pair]

    def run(self, form, *tensors: Tensor, **options) -> tuple[Tensor, Tensor]:
        q, k, v, log_alpha, state, *pair = tensors or self.tensors()
        erase = {0: None, 1: (*pair, k), 2: tuple(pair)}[len(pair)]
        return form(q, k, v, log_alpha, erase, state, **options)

    def part(self, start: int, stop: int, state: Tensor) -> list[Tensor]:
        q, k, v, log_alpha, _, *pair = self.tensors()
        q, k, v, *pair = (x[..., start:stop, :] for x in (q, k, v, *pair))
        log_alpha = log_alpha[:, :, start:stop]
        return [q, k, v, log_alpha, state, *pair]


def compare(x: Inputs, tolerance: float = 1e-10, **options) -> None:
    """Outputs, states and the gradients of everything."""
    found = []
    transposed = {"transposed": True} if options.get("transposed") else {}
    for form, extra in ((recur, options), (recur_scan, transposed)):
        tensors = [z.detach().requires_grad_() for z in x.tensors()]
        y, last = x.run(form, *tensors, **extra)
        generator = torch.Generator().manual_seed(1)
        loss = torch.stack([(z * torch.randn(z.shape, generator=generator)).sum() for z in (y, last)]).sum()
        found.append([y, last, *torch.autograd.grad(loss, tensors)])
    for a, b in zip(*found, strict=True):
        assert a.isfinite().all()
        close(a, b, tolerance)


@pytest.mark.parametrize(("channels", "erase"), KINDS)
@pytest.mark.parametrize(("length", "size"), [(1, 64), (2, 1), (7, 2), (13, 4), (32, 16), (33, 16), (70, 32), (37, 64)])
def test_equals_the_definition(channels: bool, erase: str, length: int, size: int) -> None:
    compare(Inputs(length, channels, erase), size=size)


@pytest.mark.parametrize("erase", ["none", "key", "pair"])
@pytest.mark.parametrize(("length", "size"), [(1, 64), (13, 4), (70, 32), (150, 64)])
def test_weak_decays_as_plain_products(erase: str, length: int, size: int) -> None:
    x = Inputs(length, True, erase, decay=0.6)
    compare(x, size=size, floor=-0.61)
    exact = x.run(recur_scan)
    for a, b in zip(x.run(recur, *(z.float() for z in x.tensors()), size=size, floor=-0.61), exact, strict=True):
        close(a.double(), b, 2e-6)


@pytest.mark.parametrize("erase", ["none", "key", "pair"])
@pytest.mark.parametrize(("length", "size"), [(1, 8), (13, 3), (70, 32)])
def test_transposed_reads(erase: str, length: int, size: int) -> None:
    x = Inputs(length, False, erase)
    x.q = torch.randn(*LEAD, length, OUT)
    compare(x, size=size, transposed=True)


@pytest.mark.parametrize(("channels", "erase"), KINDS)
@pytest.mark.parametrize("strong", ["all", "some", "zero", "none"])
def test_extreme_decays(channels: bool, erase: str, strong: str) -> None:
    """e^-30 at every token, at some beside others of none at all, decays of exactly zero, and none."""
    x = Inputs(70, channels, erase)
    chosen = torch.rand_like(x.log_alpha) < (1.0 if strong == "all" else 0.3)
    x.log_alpha = torch.where(chosen, {"zero": -torch.inf, "none": 0.0}.get(strong, -30.0), -1e-3 * x.log_alpha.abs())
    compare(x)


@pytest.mark.parametrize("channels", [False, True])
def test_float32_is_accurate_at_extreme_decays(channels: bool) -> None:
    x = Inputs(128, channels, "pair")
    x.log_alpha = torch.where(torch.rand_like(x.log_alpha) < 0.3, -30.0, 1e-3 * x.log_alpha)
    exact = x.run(recur_scan)
    for a, b in zip(x.run(recur, *(z.float() for z in x.tensors())), exact, strict=True):
        assert a.dtype is torch.float32
        close(a.double(), b, 1e-4)


@pytest.mark.parametrize(("channels", "erase"), KINDS)
def test_any_cut(channels: bool, erase: str) -> None:
    x = Inputs(41, channels, erase)
    whole, last = x.run(recur, size=8)
    for cuts in ([1, 2, 3], [8, 16], [5, 30], [40]):
        state, parts = x.state, []
        for start, stop in itertools.pairwise([0, *cuts, 41]):
            y, state = x.run(recur, *x.part(start, stop, state), size=8)
            parts.append(y)
        close(torch.cat(parts, -2), whole, 1e-12)
        close(state, last, 1e-12)


@pytest.mark.parametrize("which", ["p", "r"])
@pytest.mark.parametrize(("channels", "erase"), KINDS)
def test_padded_tokens_change_nothing(channels: bool, erase: str, which: str) -> None:
    x, real = Inputs(23, channels, erase), torch.rand(23) < 0.6
    if which == "r" and erase == "key":
        x.erase, x.r = "pair", x.k
    q, k, v, log_alpha, state, *pair = x.tensors()
    gone = log_alpha.masked_fill(~(real[:, None] if channels else real), 0)
    padded = [z * real[:, None] if (z is x.p) == (which == "p") else z for z in pair]
    y, last = x.run(recur, q, k, v * real[:, None], gone, state, *padded, size=8)
    decays = log_alpha[:, :, real]
    alone, end = x.run(recur, *(z[..., real, :] for z in (q, k, v)), decays, state, *(z[..., real, :] for z in pair))
    close(y[..., real, :], alone, 1e-12)
    close(last, end, 1e-12)


@pytest.mark.parametrize(("channels", "erase"), KINDS)
def test_gradcheck(channels: bool, erase: str) -> None:
    x = Inputs(5, channels, erase, lead=())
    tensors = [z.requires_grad_() for z in x.tensors()]
    assert torch.autograd.gradcheck(lambda *z: x.run(recur, *z, size=2), tensors)


def test_decays_broadcast_and_no_state_is_zero() -> None:
    """One decay a head for all sequences and tokens (RetNet), or none at all (DeltaNet)."""
    x = Inputs(19, False, "key")
    for log_alpha in (-torch.rand(3, 1).expand(3, 19), torch.zeros(19), torch.zeros(1, 19)):
        some = x.run(recur_scan, x.q, x.k, x.v, log_alpha.expand(*LEAD, 19), torch.zeros_like(x.state), x.p)
        none = recur(x.q, x.k, x.v, log_alpha, (x.p, x.k), size=8)
        for a, b in zip(none, some, strict=True):
            close(a, b, 1e-12)
    channel = recur(x.q, x.k, x.v, torch.full((1, 1, 19, D), -0.3), (x.p, x.k), size=8)
    close(channel[0], recur(x.q, x.k, x.v, torch.full((19,), -0.3), (x.p, x.k), size=8)[0], 1e-12)


def test_half_precision_and_autocast_keep_states_in_float32() -> None:
    x = Inputs(19, True, "pair")
    y, last = x.run(recur, *(z.bfloat16() for z in x.tensors()))
    assert y.dtype is last.dtype is torch.float32
    y, last = x.run(recur, *(z.bfloat16().double() for z in x.tensors()))
    assert y.dtype is last.dtype is torch.float64


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (False, {"size": 0}, "size=0 must be a positive number of tokens"),
        (True, {"size": 12}, "size=12 must be a positive number of tokens, a power of two"),
        (True, {"transposed": True}, "transposed=True needs one decay a token"),
    ],
)
def test_mistakes(channels: bool, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Inputs(3, channels, "none").run(recur, **options)
