"""What torch.compile is to leave alone, so that of a step exactly the `update` functions are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def bookkeeping(function: _Function) -> _Function:
    """Neither this function nor what it calls is compiled."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def outer(function: _Function) -> _Function:
    """This function is not compiled, but what it calls is."""
    return torch.compiler.disable(function, recursive=False)  # pyright: ignore
