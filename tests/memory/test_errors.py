"""Choices that contradict each other are refused with one sentence that says what to do."""

import pytest
import torch

from nestling.errors import InputError
from nestling.memory.dgd import DGD
from nestling.memory.feature import Polynomial
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum
from nestling.memory.objective import DotProduct, Huber, Lp
from nestling.memory.oja import Oja
from nestling.memory.omega import Omega
from nestling.memory.parallel import chunked
from nestling.memory.retention import KL, Lq
from nestling.memory.scan import scan
from nestling.memory.structure import Matrix, ResidualMLP

BAD = {
    "chunk": (lambda: Memory(chunk_size=0), "at least 1"),
    "read": (lambda: Memory(read="later"), "one of 'causal'"),  # pyright: ignore[reportArgumentType]
    "rules": (lambda: Memory(rules=(GD(),)), "one a layer"),
    "hidden direct": (lambda: Memory(rules=(DGD(), DGD())), "layer 1.*no direct target"),
    "direct huber": (lambda: Memory(Matrix(), Huber(), (DGD(),)), "target='surprise'"),
    "direct dot": (lambda: Memory(Matrix(), DotProduct()), "proximal step of the L2"),
    "hidden oja": (lambda: Memory(rules=(GD(), Oja())), "layer 1"),
    "dgd kl": (lambda: Memory(Matrix(), retention=KL()), "mirror descent"),
    "omega dgd lq": (lambda: Memory(Matrix(), rules=(Omega(2, DGD()),), retention=Lq()), "mirror descent"),
    "omega window": (lambda: Omega(0), "at least 1 pair"),
    "omega oja": (lambda: Omega(2, Oja()), "GD or DGD"),
    "lp": (lambda: Lp(0.5), "p >= 1"),
    "huber": (lambda: Huber(0.0), "threshold > 0"),
    "lq": (lambda: Lq(1.5), "q >= 2"),
    "kl": (lambda: KL(0.0), "scale > 0"),
    "layers": (lambda: ResidualMLP(1), "use Matrix"),
    "degree": (lambda: Polynomial(0), "at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_choices(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [scan, chunked])
@pytest.mark.parametrize("momentum", [None, Momentum()])
def test_beta_is_given_exactly_with_momentum(form, momentum: Momentum | None) -> None:
    memory = Memory(Matrix(), momentum=momentum)
    x, rate = torch.randn(2, 3), torch.rand(2)
    with pytest.raises(InputError, match="exactly when the memory has momentum"):
        form(memory, memory.init_state((torch.zeros(3, 3),)), x, x, x, rate, rate, None if momentum else rate)
