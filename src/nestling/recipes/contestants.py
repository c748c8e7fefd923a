"""Who takes part in the bench: a table of small functions, each of which builds a model and returns one step of it.

A step reads token ids (B, T), which are the labels too, and runs forward and backward. All have the same width, blocks,
heads and vocabulary; what else differs, `note` says.
"""

import dataclasses
import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling import models
from nestling.layers.feedforward import SwiGLU
from nestling.layers.norm import RMSNorm
from nestling.models.sizes import matched

REFERENCE = "transformer++"
"""The contestant to which all speeds are set in relation."""

CHUNK = 64
"""Tokens a chunk of the peers' memories, the same as ours."""

Step = Callable[[Tensor], Any]


class Unavailable(Exception):
    """This contestant cannot run here; says why and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all contestants have in common; intermediate_size is the Transformers', others have as many parameters."""

    vocab_size: int = 512
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 512


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the bench. build: makes the model and returns it with its step. note: what to know when comparing."""

    build: Callable[[Shape], tuple[nn.Module, Step]]
    note: str = ""


def _ours(name: str, **fields: Any) -> Callable[[Shape], tuple[nn.Module, Step]]:
    def build(shape: Shape) -> tuple[nn.Module, Step]:
        values = dataclasses.asdict(shape) | fields
        if name != REFERENCE:
            values["intermediate_size"] = matched(name, **values)
        return _causal(models.create(name, **values))

    return build


def _llama(shape: Shape) -> tuple[nn.Module, Step]:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        **dataclasses.asdict(shape),
        num_key_value_heads=shape.num_attention_heads,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
    )
    return _causal(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))


def _causal(model: Any) -> tuple[nn.Module, Step]:
    """A transformers causal language model, which computes the loss itself."""
    return model.train(), lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


class _Titans(nn.Module):
    """titans-pytorch's NeuralMemory as the token mixer of our block skeleton."""

    def __init__(self, shape: Shape):
        super().__init__()
        memory = _peer("titans_pytorch", "titans-pytorch").NeuralMemory
        width, heads = shape.hidden_size, shape.num_attention_heads
        self.embed = nn.Embedding(shape.vocab_size, width)
        self.mixers = nn.ModuleList(
            memory(dim=width, heads=heads, dim_head=width // heads, chunk_size=CHUNK)
            for _ in range(shape.num_hidden_layers)
        )
        self.channels = nn.ModuleList(SwiGLU(width, shape.intermediate_size) for _ in self.mixers)
        self.norms = nn.ModuleList(RMSNorm(width, 1e-5) for _ in range(2 * len(self.mixers) + 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x = self.embed(ids)
        for i, (mixer, channel) in enumerate(zip(self.mixers, self.channels, strict=True)):
            x = x + mixer(self.norms[2 * i](x))[0]
            x = x + channel(self.norms[2 * i + 1](x))[0]
        return self.norms[-1](x) @ self.embed.weight.T


def _titans(shape: Shape) -> tuple[nn.Module, Step]:
    model = _Titans(shape)
    return model.train(), lambda ids: _loss(model(ids), ids).backward()


def _nested_learning(shape: Shape) -> tuple[nn.Module, Step]:
    """Its training step: loss and gradients through the reads, then the pass that writes, without gradients."""
    levels = _peer("nested_learning.levels", "nested-learning")
    model_module = _peer("nested_learning.model", "nested-learning")
    config = model_module.ModelConfig(
        vocab_size=shape.vocab_size,
        dim=shape.hidden_size,
        num_layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        titan_level=levels.LevelSpec("titan", CHUNK),
        cms_levels=[levels.LevelSpec("cms", 512)],
        qk_l2_norm=True,
        self_mod_chunk_size=CHUNK,
        self_mod_chunk_size_memory=CHUNK,
        block_variant="hope_selfmod",
    )
    model = model_module.HOPEModel(config).train()

    def step(ids: Tensor) -> None:
        logits = model(ids)
        loss = _loss(logits, ids)
        (error,) = torch.autograd.grad(loss, logits, retain_graph=True)
        loss.backward()
        with torch.no_grad():
            model(ids, teach_signal=error @ model.lm_head.weight, fast_state=model.init_fast_state())

    return model, step


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _peer(module: str, package: str) -> Any:
    try:
        metadata.version(package)
        return importlib.import_module(module)
    except (metadata.PackageNotFoundError, ImportError) as error:
        raise Unavailable(f"not installed ({error}): pip install --no-deps {package}, and what it imports") from None


CONTESTANTS: dict[str, Contestant] = {
    REFERENCE: Contestant(_ours("transformer++")),
    "llama (transformers)": Contestant(_llama),
    "hope, CMS one plain block": Contestant(_ours("hope", levels=[{}])),
    "hope": Contestant(_ours("hope"), "the default preset"),
    "hope, two CMS levels": Contestant(
        _ours("hope", levels=[{"signal": "self", "chunk_size": 64}, {"signal": "self", "chunk_size": 256}]),
        "both learn in context, every 64 and every 256 tokens",
    ),
    "titans-pytorch": Contestant(_titans, f"NeuralMemory with its defaults, chunk {CHUNK}, and SwiGLU"),
    "nested-learning": Contestant(
        _nested_learning,
        f"its hope_selfmod, chunk {CHUNK}; forward, backward and its pass of writes, which has no gradient",
    ),
}
"""In the order of the table."""
