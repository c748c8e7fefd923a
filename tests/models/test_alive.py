"""Every model stays alive over long streams: finite, of bounded scale, of constant size, and open to what comes."""

import math

import pytest
import torch

from models.conftest import make
from models.streams import STREAMS, streams
from nestling.data import open_store
from nestling.models import MemoryCache
from nestling.models.cache import mapped
from tables import LOCAL, LONG, UNBOUNDED

LENGTH, FIRST, PIECE, MORE = 16384, 512, 2048, 64
TEXTS = [STREAMS.index("random"), STREAMS.index("text")]


@pytest.fixture(scope="module")
def text():
    return open_store("python", max_bytes=200_000).train


def largest(cache: MemoryCache) -> float:
    """The largest number of all states, NaN if there is one; counts are none."""
    found = []
    mapped(cache.states, lambda leaf: found.append(leaf.flatten()) if leaf.is_floating_point() else None)
    return torch.cat(found).abs().max().item()


def read(model, x, cache):
    """Outputs (B, T, D), the next cache, and the size of the stream behind the last block, token by token (B, T)."""
    inside = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: inside.append(inputs[0]))
    out = model.model(inputs_embeds=x, cache=cache, use_cache=True)
    hook.remove()
    return out.last_hidden_state, out.cache, inside[0].square().mean(-1).sqrt()


def influence(model, x, cache):
    """How much the last output depends on each of the tokens `x` (B, T, D) that follow `cache`: (B, T)."""
    x = x.detach().clone().requires_grad_()
    y = model.model(inputs_embeds=x, cache=cache.detach(), use_cache=False).last_hidden_state[:, -1]
    weight = torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((y @ weight).sum(), x)[0].norm(dim=-1)


def test_alive_behind_sixteen_thousand_tokens(name, text):
    model = make(name, **LONG.get(name, {}))
    x = streams(model.model.embed_tokens.weight.detach(), text, LENGTH)
    with torch.no_grad():
        _, early, size = read(model, x[:, :FIRST], None)
        start, typical, sizes, cache = largest(early), size.amax(1), [], early
        for piece in x[:, FIRST:].split(PIECE, 1):
            y, cache, size = read(model, piece, cache)
            assert y.isfinite().all()
            assert math.isfinite(largest(cache))
            if name not in UNBOUNDED:
                assert (size.amax(1) < 10 * typical).all(), "the stream between blocks grows"
                assert largest(cache) < 4 * cache.seen / FIRST * start, "a state grows faster than the text"
            sizes.append(cache.nbytes)
    assert sizes[-1] > sizes[3] if model.config.growing_state else sizes[-1] == sizes[3], (
        "bytes of state at 8k and at 16k"
    )
    more = x[:, FIRST : FIRST + MORE]
    before, now = (influence(model, more, kept)[TEXTS] for kept in (early, cache))
    for distance in (2, 49) if name not in LOCAL else (2,):
        assert (before[:, -distance] > 0).all(), f"{distance} tokens ago says nothing"
        assert (now[:, -distance] > 1e-3 * before[:, -distance]).all(), f"{distance} tokens ago no longer counts"
