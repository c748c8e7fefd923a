"""Sizes: shapes by name, and equal parameters for every model of a size."""

from dataclasses import fields

import torch

from nestling.errors import InputError
from nestling.models.base import NestlingForCausalLM
from nestling.models.config import NestlingConfig
from nestling.models.registry import build, choice, configuration

REFERENCE = "transformer++"
TOLERANCE = 0.03
_STEP = 8


def _shape(vocab_size: int, layers: int, width: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "vocab_size": vocab_size,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


_SIZES = {
    "nano": _shape(256, 4, 128, 4, 512),
    "micro": _shape(256, 6, 384, 6, 1024),
    "small": _shape(256, 10, 640, 10, 1728),
    "340m": _shape(32000, 24, 1024, 16, 2816),
    "760m": _shape(32000, 24, 1536, 16, 4352),
    "1.3b": _shape(32000, 24, 2048, 16, 5632),
}


def sizes() -> dict[str, dict[str, int]]:
    """Fields of every size; intermediate_size is the Transformer++'s."""
    return {name: dict(shape) for name, shape in _SIZES.items()}


def parameters(config: NestlingConfig) -> int:
    """Parameters of the model that `config` describes, counted without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(config).parameters())


def matched(name: str, **values) -> int:
    """The intermediate_size with which model `name` has as many parameters as the Transformer++ of these fields.

    Parameters grow in proportion to intermediate_size, so two counts give the slope; a multiple of 8 is chosen. Where
    blocks share the width, each rounds it, which narrow counts exaggerate; then the first result gives the slope.

    Raises:
        InputError: the rest of the model is already so large that no width comes within 3%.
    """
    shared = {field.name for field in fields(NestlingConfig)}
    target = parameters(configuration(REFERENCE, **{key: value for key, value in values.items() if key in shared}))

    def count(width: int) -> int:
        return parameters(configuration(name, **values | {"intermediate_size": width}))

    low, width = count(_STEP), 2 * _STEP
    reached = count(width)
    for _ in range(2):
        slope = max(reached - low, 1) / max(width - _STEP, 1)
        width = max(_STEP, _STEP * round(1 + (target - low) / slope / _STEP))
        reached = count(width)
        if abs(reached - target) <= TOLERANCE * target:
            return width
    raise InputError(
        f"model '{name}' has {reached:,} parameters at best, but the {REFERENCE} of the same fields {target:,}: "
        "give intermediate_size yourself, or make its other fields smaller."
    )


def create(name: str, size: str = "nano", **values) -> NestlingForCausalLM:
    """A new model with fresh weights, e.g. create("transformer++", "nano", vocab_size=256).

    Args:
        name: one of `names()`.
        size: one of `sizes()`.
        values: any field of the model's configuration, in place of the size's. Unless `intermediate_size` is among
            them, it is chosen so that all models of a size have the same number of parameters to 3%.

    Raises:
        InputError: an unknown name, size or field, or values that don't fit together.
    """
    choice("size", size, _SIZES)
    shape = _SIZES[size] | values
    config = configuration(name, **shape)
    if "intermediate_size" not in values and name != REFERENCE:
        config = configuration(name, **shape | {"intermediate_size": matched(name, **shape)})
    return build(config)
