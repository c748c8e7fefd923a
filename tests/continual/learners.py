"""The learners of the table, made from tiny models, and what is asked of them again and again."""

from functools import cache

import torch
from torch import nn

from continual.tiny import tiny
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.replay import Replay
from tables import LEARNERS

VOCABULARY = 61
NAMES = list(LEARNERS)
LENGTH = 45
"""Tokens of the stream that most tests read: no multiple of any period."""

_SHAPES = {"gpt2": {"n_layer": 2}, "gemma3": {}}


def model(name: str, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a learner, one for all tests: a learner changes none."""
    return _model(name, dtype)


@cache
def _model(name, dtype):
    about = LEARNERS[name]
    name = about.get("model", "transformer++")
    found = tiny(name, **_SHAPES.get(name, {"num_hidden_layers": 2}) | about.get("fields", {}))
    return found.to(dtype or getattr(torch, about.get("dtype", "float32")))


def make(name: str, dtype: torch.dtype | None = None, **levels) -> Learner:
    """The learner `name`. dtype: another one for its model; levels: fields that all its levels are to have."""
    about = LEARNERS[name]
    replay = Replay(**about["replay"]) if "replay" in about else None
    learner = Learner(
        model(name, dtype),
        levels=[Level(**level | levels) for level in about["levels"]],
        context=about.get("context"),
        replay=replay,
        recall=about.get("recall", "all"),
    )
    if "protect" in about:
        learner.protect(ids(40, seed=9), about["protect"])
    return learner


def ids(length: int, seed: int = 1) -> torch.Tensor:
    """Token ids (length,)."""
    return torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def cuts(stream, seed: int = 0, longest: int = 9):
    """A text or ids in pieces of 0 to `longest` tokens or characters."""
    source = torch.Generator().manual_seed(seed)
    pieces, at = [], 0
    while at < len(stream):
        length = int(torch.randint(longest + 1, (1,), generator=source))
        pieces.append(stream[at : at + length])
        at += length
    return pieces


def read(learner: Learner, pieces) -> Learner:
    """The learner, once it has read the pieces one by one."""
    for piece in pieces:
        learner.read(piece)
    return learner


@cache
def whole(name: str, seed: int = 1) -> dict:
    """The state of a learner that has read the stream in one go."""
    return read(make(name), [ids(LENGTH, seed)]).state()


def inside(module: nn.Module) -> dict:
    """All of a model that could be left changed: parameters and whose they are, flags, hooks, modes, attributes."""
    return {
        name: (
            {key: (id(value), value.requires_grad, value.grad is None) for key, value in own.items()},
            {key: value.detach().clone() for key, value in own.items()},
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks),
            part.training,
            sorted(key for key in vars(part) if key != "_nestling_fingerprint"),
        )
        for name, part in module.named_modules()
        for own in [{key: value for key, value in part._parameters.items() if value is not None}]
    }
