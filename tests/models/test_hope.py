"""Hope, put together once more from its definition."""

import pytest
import torch
from torch.nn import functional

from models.conftest import make
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
