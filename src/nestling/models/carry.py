"""Caches carried along a stream, ours and those of transformers: copied, detached, taken apart, rebuilt."""

import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from nestling.errors import InputError
from nestling.models.cache import MemoryCache
from nestling.models.config import NestlingConfig


def copied(cache: Any) -> Any:
    """A cache that may be continued without changing `cache`; None stays None. Tensors are shared, never written to."""
    if cache is None or isinstance(cache, MemoryCache):
        return cache
    twin = copy.copy(_layered(cache))
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def detached(cache: Any) -> Any:
    """The same values without a history of gradients."""
    if isinstance(cache, MemoryCache):
        return cache.detach()
    twin = copied(cache)
    for layer in twin.layers:
        vars(layer).update({name: value.detach() for name, value in vars(layer).items() if isinstance(value, Tensor)})
    return twin


def apart(cache: Any) -> Any:
    """A cache as nested dicts of numbers and tensors; None stays None."""
    if cache is None:
        return None
    if isinstance(cache, MemoryCache):
        return {"states": cache.states, "seen": cache.seen, "model": cache.model}
    kept = (Tensor, bool, int, float, type(None))
    return [{k: v for k, v in vars(layer).items() if isinstance(v, kept)} for layer in _layered(cache).layers]


def together(state: Any, model: PreTrainedModel) -> Any:
    """The inverse of `apart`, for a model that the cache belongs to; its tensors become the cache's."""
    if state is None:
        return None
    if isinstance(state, dict):
        return MemoryCache(state["states"], state["seen"], state["model"])
    cache = DynamicCache(config=model.config)
    if len(cache.layers) != len(state):
        raise InputError(f"the saved context has {len(state)} blocks, but the model {len(cache.layers)}.")
    for layer, values in zip(cache.layers, state, strict=True):
        vars(layer).update(values)
        if isinstance(keys := values.get("keys"), Tensor):
            vars(layer).update(device=keys.device, dtype=keys.dtype)
    return cache


def grows(model: Any) -> bool:
    """Whether the cache of this model grows with the text; for one that is not ours, taken as true."""
    config = getattr(model, "config", None)
    return config.growing_state if isinstance(config, NestlingConfig) else True


def longest(model: Any) -> int | None:
    """Tokens that the model can read at once at most, as its configuration says; None: no limit known."""
    if not grows(model):
        return None
    return getattr(model.config, "max_position_embeddings", None)


def _layered(cache: Any) -> Cache:
    if not isinstance(cache, Cache) or not getattr(cache, "layers", None):
        raise InputError(
            f"the model's cache is a {type(cache).__name__}: a learner carries caches made of layers only."
        )
    return cache
