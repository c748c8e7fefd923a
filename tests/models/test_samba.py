"""What Samba and sliding-window attention are made of, and that their states stop growing."""

import pytest
import torch

from models.conftest import make, tokens
from nestling.errors import InputError
from nestling.layers.attention import Attention
from nestling.layers.mamba import Mamba
from nestling.models import create


def test_mamba_and_attention_take_turns():
    blocks = make("samba", num_hidden_layers=4, step_rank=3, expand=1, conv_width=2).model.layers
    assert [type(block.mixer) for block in blocks] == [Mamba, Attention, Mamba, Attention]
    assert [block.mixer.window for block in blocks[1::2]] == [8, 8]
    mixer = blocks[2].mixer
    assert (mixer.sizes, mixer.skip.shape, mixer.conv.width) == ([3, 4, 4], (32,), 2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["samba", "sliding-window"])
def test_the_state_stops_growing(name):
    model, ids = make(name), tokens(2, 300)
    sizes = [model(ids[:, :length], use_cache=True).cache.nbytes for length in (3, 7, 8, 20, 300)]
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3] == sizes[4]


@torch.no_grad()
@pytest.mark.parametrize(("name", "reach"), [("samba", 300), ("sliding-window", 14)])
def test_how_far_a_token_is_seen(name, reach):
    """Two layers of a window of 8 reach 14 tokens back; Mamba's memory all the way."""
    model, ids = make(name).double(), tokens(1, 300)
    other = ids.clone()
    other[:, 0] = ids[:, 0] % 60 + 1
    changed = (model(ids).logits != model(other).logits).any(-1)[0]
    assert changed[:reach].all()
    assert not changed[reach + 1 :].any()


def test_transformers_sees_no_other_mamba():
    """generate() treats classes with "mamba" in their names as models with a cache of its own."""
    assert not any("mamba" in cls.__name__.lower() for cls in type(make("samba")).__mro__)


def test_sizes_that_do_not_fit():
    for name in ("samba", "sliding-window"):
        with pytest.raises(InputError, match="sliding_window=0 must be at least 1"):
            create(name, sliding_window=0)
    for field in ("state_size", "expand", "step_rank", "conv_width"):
        with pytest.raises(InputError, match=f"{field}=0 must be at least 1"):
            create("samba", **{field: 0})
