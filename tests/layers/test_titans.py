"""Self-modifying Titans as a mixer: every switch, every memory's gradient, bf16."""

import pytest
import torch

from nestling.errors import InputError
from nestling.layers.titans import SelfModifyingTitans
from nestling.memory.memory import Memory, Momentum
from nestling.memory.selfmod import SelfModifying
from nestling.models.registry import configuration

D, HEADS, LENGTH = 16, 2, 23
SWITCHES = {
    "default": {},
    "two chunk lengths": {"projection_chunk_size": 8},
    "surprise": {"memory_rule": "dgd-surprise", "memory_hidden_rule": "dgd-surprise"},
    "gradient descent": {"memory_rule": "gd"},
    "features frozen": {"memory_hidden_rule": "frozen"},
    "momentum": {"memory_momentum": True},
    "no retention": {"memory_retention": False},
    "anchor zero": {"memory_anchor": "zero"},
    "slow key": {"memory_updated": ["v", "eta", "alpha", "mem"]},
    "slow value": {"memory_updated": ["k", "eta", "alpha", "mem"]},
    "adaptive query": {"adaptive_query": True, "memory_updated": ["v", "k", "eta", "alpha", "q", "mem"]},
    "content only": {"memory_updated": ["mem"]},
    "shared targets": {"memory_own_targets": False},
    "previous": {"memory_read": "previous"},
    "boundary": {"memory_read": "boundary"},
}


def mixer(**fields):
    shape = {"hidden_size": D, "num_attention_heads": HEADS, "chunk_size": 4, "projection_chunk_size": 4}
    torch.manual_seed(0)
    return configuration("hope", **shape | fields).mixer(0)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_memory_of_every_head_learns(name):
    layer = mixer(**SWITCHES[name])
    y, state = layer(torch.randn(2, LENGTH, D))
    assert state is None
    y.square().sum().backward()
    for index, weight in enumerate(layer.initial):
        size = weight.grad.abs().flatten(2).amax(-1)
        assert size.isfinite().all()
        if name == "no retention":
            size = size[[0, 1, 2, 4]]  # M_alpha then decides nothing
        assert (size > 0).all(), (index, size)
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", [name for name in SWITCHES if name not in ("default", "adaptive query")])
def test_every_switch_does_something(name):
    x = torch.randn(1, LENGTH, D, generator=torch.Generator().manual_seed(1))
    plain, switched = mixer(), mixer(**SWITCHES[name])
    switched.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert not torch.allclose(plain(x)[0], switched(x)[0], atol=1e-6)


def test_bf16_parameters_and_autocast_are_finite():
    x = torch.randn(2, LENGTH, D)
    for layer, inputs in ((mixer().bfloat16(), x.bfloat16()), (mixer(), x)):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(inputs, keep=True)
        y.float().square().sum().backward()
        assert y.isfinite().all()
        assert state["current0"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_state_has_one_size_whatever_the_length():
    layer = mixer(memory_momentum=True)
    sizes = {
        sum(w.nbytes for key, w in layer(torch.randn(1, length, D), keep=True)[1].items() if key != "conv")
        for length in (1, 4, 40)
    }
    assert len(sizes) == 1


def test_levels_name_the_chunk_lengths():
    window, projections, content = mixer(projection_chunk_size=8).components()
    assert (window.period, content.period, projections.period) == (1, 4, 8)
    assert projections.parameters == 4 * content.parameters == 4 * HEADS * 2 * (D // HEADS) ** 2
    assert [one.name for one in mixer(memory_updated=["mem"]).components()] == ["short convolution", "content memory"]
    named = [one.name for one in mixer(memory_updated=["mem"], memory_momentum=True).components()]
    assert named == ["short convolution", "momentum of the content memory", "content memory"]


def test_a_kernel_that_cannot_compute_the_memory_is_refused():
    memory = SelfModifying(Memory(chunk_size=4, momentum=Momentum()), 4)
    with pytest.raises(InputError, match="kernel='fused' doesn't compute"):
        SelfModifyingTitans(D, HEADS, 8, memory, kernel="fused")
    with pytest.raises(InputError, match="kernel='triton' is unknown"):
        SelfModifyingTitans(D, HEADS, 8, memory, kernel="triton")
