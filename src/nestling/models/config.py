"""The configuration that all models share."""

import json
from dataclasses import fields
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig

from nestling.errors import InputError
from nestling.layers.feedforward import SwiGLU

INHERITED = {field.name for field in fields(PreTrainedConfig)}
_NO_SHAPE = {
    "checkpoint_tokens",
    "initializer_range",
    "kernel",
    "use_cache",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}


@strict
class NestlingConfig(PreTrainedConfig):
    """Fields of every model, named as transformers names them; a model adds its own and says what its blocks are.

    vocab_size: tokens; the default is bytes, of which 0 separates documents (begin, end and padding token).
    hidden_size, num_hidden_layers, num_attention_heads: width, blocks, heads.
    intermediate_size: hidden width of the channel mixer; the sizes choose it so that models have equal parameters.
    rms_norm_eps: under the root of every RMSNorm.
    checkpoint_tokens: where gradients are wanted, a block goes over the sequence in segments of so many tokens and
        computes each again in the backward pass, from the state at its start: memory for one segment in place of a long
        sequence. None: the whole sequence at once.
    initializer_range: standard deviation of weights at the start, held below sqrt(2 / (5 hidden_size)).
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]
    growing_state: ClassVar[bool] = False
    """Whether the state grows with the text, as that of attention to all of it does."""

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    rms_norm_eps: float = 1e-5
    checkpoint_tokens: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise InputError where fields don't fit together; a model extends it for its own fields."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1: give a positive number.")
        if self.checkpoint_tokens is not None and self.checkpoint_tokens < 1:
            raise InputError(f"checkpoint_tokens={self.checkpoint_tokens} must be at least 1, or None for no segments.")
        if self.hidden_size % self.num_attention_heads:
            divisors = [n for n in range(1, self.hidden_size + 1) if self.hidden_size % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - self.num_attention_heads))[:2])
            raise InputError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}: "
                f"use {' or '.join(map(str, near))} heads."
            )

    def mixer(self, layer: int) -> nn.Module:
        """The token mixer of block `layer`, counted from 0. Every model defines it."""
        raise TypeError(f"{type(self).__name__} describes no model: use one of nestling.models.names().")

    def channel(self, layer: int) -> nn.Module:
        """The channel mixer of block `layer`, counted from 0."""
        return SwiGLU(self.hidden_size, self.intermediate_size)

    def fingerprint(self) -> str:
        """The model's name and the fields that shape its state, as JSON; states move only between equal ones."""
        names = sorted(field.name for field in fields(self) if field.name not in INHERITED | _NO_SHAPE)
        return json.dumps({"model": self.model_type} | {name: getattr(self, name) for name in names}, default=str)
