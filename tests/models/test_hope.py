"""Hope, put together once more from its definition."""

import pytest
import torch
from torch.nn import functional

from models.conftest import make
from nestling.errors import InputError
from nestling.layers.cms import ContinuumMemory
from nestling.layers.titans import SelfModifyingTitans
from nestling.memory.selfmod import Inputs, scan
from nestling.memory.stack import unit


def mixer_by_definition(mixer, x):
    """Self-modifying Titans, token by token: projections, convolutions, memories, norm, gate."""
    rows, gate = mixer.project(x).split([3 * mixer.heads * mixer.width, mixer.heads * mixer.width], -1)
    rows = unit(mixer.conv(rows)[0].unflatten(-1, (3, mixer.heads, mixer.width)))
    key, value, query = rows.permute(2, 0, 3, 1, 4)
    y, _ = scan(mixer.memory, mixer._slow(x.dtype), Inputs(key, value, query))
    return mixer.output(mixer.norm(y.transpose(1, 2)).flatten(2) * functional.silu(gate))


@pytest.mark.paper("Eq. 94-97")
def test_a_block_is_self_modifying_titans_then_the_continuum_memory():
    """Each reads the normalized stream and adds to it; the second one's input is the first one's output."""
    levels = [{"signal": "self", "chunk_size": 8}, {"signal": "none"}]
    block = make("hope", levels=levels).double().model.layers[0]
    assert isinstance(block.mixer, SelfModifyingTitans)
    assert isinstance(block.channel, ContinuumMemory)
    x = torch.randn(2, 19, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    o = x + mixer_by_definition(block.mixer, block.mixer_norm(x))
    y = o + block.channel(block.channel_norm(o))[0]
    torch.testing.assert_close(block(x)[0], y, rtol=0, atol=1e-9)
    assert (o - x).abs().max() > 1e-3
    assert (y - o).abs().max() > 1e-3


CHOICES = {
    "explicit step": {"memory_step": "explicit", "memory_hidden_rule": "frozen", "memory_retention": False},
    "explicit surprise": {"memory_step": "explicit", "memory_rule": "dgd-surprise"},
    "matrix": {"memory_structure": "matrix", "memory_step": "explicit"},
    "sums": {
        "memory_objective": "dot",
        "memory_rule": "gd",
        "memory_hidden_rule": "frozen",
        "memory_updated": ["mem"],
        "memory_own_targets": False,
    },
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_of_memory_is_its_definition(name):
    mixer = make("hope", **CHOICES[name]).double().model.layers[0].mixer
    x = torch.randn(2, 11, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mixer(x)[0], mixer_by_definition(mixer, x), rtol=0, atol=1e-9)


@torch.no_grad()
def test_sums_erase_nothing_and_do_not_depend_on_chunks():
    """With the dot product a token written twice counts twice, in one chunk or in many."""
    fields = CHOICES["sums"] | {"memory_retention": False}
    states = []
    for size in (1, 4, 64):
        torch.manual_seed(0)
        mixer = make("hope", **fields, chunk_size=size, projection_chunk_size=size).double().model.layers[0].mixer
        x = torch.randn(1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(1, 40, 32)
        near, middle, far = (mixer(x[:, :length], keep=True)[1]["current0"] for length in (20, 30, 40))
        torch.testing.assert_close(far - middle, middle - near, rtol=0, atol=1e-9)
        assert (far - near).norm() > 1e-2
        states.append(far)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(states[0], states[2], rtol=0, atol=1e-9)


@torch.no_grad()
def test_with_steps_near_two_a_repeated_token_turns_what_is_stored():
    """Read after an even and an odd number of the same write, the memory alternates and does not fade."""
    fields = {"memory_updated": ["mem"]} | CHOICES["explicit step"]
    mixer = make("hope", **fields).double().model.layers[0].mixer
    mixer.gate_bias[0].fill_(40.0)
    mixer.gate_weight.zero_()
    x = torch.randn(1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(1, 101, 32)
    y, _ = mixer(x)
    even, odd = y[:, 50::2], y[:, 51::2]
    for same in (even, odd):
        torch.testing.assert_close(same, same[:, :1].expand_as(same), rtol=0, atol=1e-9)
    assert (even[:, 0] - odd[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"memory_step": "exact"}, "memory_step 'exact' is unknown"),
        ({"memory_structure": "tree"}, "memory_structure 'tree' is unknown"),
        ({"memory_objective": "l3"}, "memory_objective 'l3' is unknown"),
        ({"memory_step": "explicit", "memory_rule": "gd"}, "memory_step='explicit' is a step of DGD"),
        ({"memory_objective": "dot"}, r"DGD\(target='direct'\) is the proximal step of the L2 objective"),
    ],
)
def test_choices_that_do_not_fit(fields, said):
    with pytest.raises(InputError, match=said):
        make("hope", **fields)
