"""Language models for the transformers library. Importing this registers them with its Auto classes.

`import nestling` does it too where transformers is already imported; otherwise it stays light, and the first use of
`nestling.models` registers. `load` opens a saved folder either way.
"""

from nestling.models import (  # noqa: F401  (one name a model)
    adatransformer,
    comba,
    deltanet,
    dla,
    gated_deltanet,
    hope,
    hope_attention,
    linear_attention,
    lstm,
    memora,
    moneta,
    ojanet,
    retnet,
    rwkv7,
    samba,
    sliding_window,
    srwm,
    titans_lmm,
    titans_mac,
    titans_mag,
    titans_mal,
    transformer_pp,
    ttt_linear,
    ttt_mlp,
    yaad,
)
from nestling.models.base import NestlingForCausalLM, NestlingModel
from nestling.models.cache import MemoryCache
from nestling.models.config import NestlingConfig
from nestling.models.registry import load, load_any, names, register
from nestling.models.sizes import create, parameters, sizes
from nestling.models.state import load_state, save_state

__all__ = [
    "MemoryCache",
    "NestlingConfig",
    "NestlingForCausalLM",
    "NestlingModel",
    "create",
    "load",
    "load_any",
    "load_state",
    "names",
    "parameters",
    "register",
    "save_state",
    "sizes",
]
