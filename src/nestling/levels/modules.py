"""What modules update outside the optimizer: their own descriptions, and those of torch's and transformers' modules.

A module that has state says so in a method of its class:

    def components(self) -> list[Component]:
        return [Component("memory", "memory", self.chunk_size, context="keys and values", ...)]

It speaks for its submodules too. Names are its own: equal components of several modules become one in the system.
"weights" stands for the module's weights in the transfers. `describe.register(SomeModule)` adds a foreign class.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import singledispatch
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from nestling.levels.clock import Component, Transfer


def described(module: nn.Module) -> Iterator[tuple[nn.Module, list[Component]]]:
    """Modules inside `module` that have components, and these; a module speaks for what it contains."""
    # Of the class: an attribute may be a ModuleList of this name.
    own: Callable[[nn.Module], list[Component]] | None = getattr(type(module), "components", None)
    found = own(module) if callable(own) else describe(module)
    if found:
        yield module, list(found)
    elif found is None:
        for child in module.children():
            yield from described(child)


def within(name: str, components: Iterable[Component], *more: Transfer) -> list[Component]:
    """The components of the submodule `name` as its parent describes them; `more` transfers start at the last one."""

    def moved(end: str) -> str:
        role, _, inside = end.partition(":")
        return f"weights:{name}.{inside}".rstrip(".") if role == "weights" else end

    found = [
        replace(one, transfers=tuple(replace(t, source=moved(t.source), target=moved(t.target)) for t in one.transfers))
        for one in components
    ]
    return [*found[:-1], replace(found[-1], transfers=(*found[-1].transfers, *more))]


@singledispatch
def describe(module: nn.Module) -> list[Component] | None:
    """The components of a module that does not describe itself; None: look at its children.

    By default, attention modules of transformers are known by their attribute `is_causal`.
    """
    causal = getattr(module, "is_causal", None)
    if "Attention" not in type(module).__name__ or not isinstance(causal, bool):
        return None
    window: Any = getattr(module, "sliding_window", getattr(getattr(module, "config", None), "sliding_window", None))
    return [attention(causal, window)]


def attention(causal: bool = True, window: int | None = None) -> Component:
    """Softmax attention: the closed solution of a weighted regression on its context, without a state (Eq. 62-63)."""
    tokens = f"the last {window:,} tokens" if window else "all tokens so far" if causal else "all tokens given"
    return Component(
        "attention",
        "attention",
        0,
        context=f"keys and values of {tokens}",
        objective="L2 to the values, weighted by the keys' similarity to the query",
        rule="non-parametric: the closed solution, softmax",
        transfers=(
            Transfer("context generation", "weights", "attention"),
            Transfer("direct, non-parametric", "attention", "weights"),
        ),
    )


def window(width: int, channels: int) -> Component:
    """A causal convolution: its state is a window of rows, its filter a weight."""
    name = "short convolution"
    return Component(
        name,
        "convolution",
        1,
        context=f"the last {width} tokens",
        objective="none: it keeps what it is given",
        rule=f"non-parametric: the last {width - 1} rows",
        parameters=(width - 1) * channels,
        transfers=(
            Transfer("context generation", "weights", name),
            Transfer("direct, non-parametric", name, "weights"),
        ),
    )


@describe.register
def _(module: nn.MultiheadAttention) -> list[Component]:
    return [attention(causal=False)]


@describe.register
def _(module: nn.Conv1d) -> list[Component] | None:
    """Causal if it pads all of its reach, as those do that cut off the right end afterwards."""
    reach = module.dilation[0] * (module.kernel_size[0] - 1)
    causal = reach > 0 and module.padding == (reach,)
    return [window(reach + 1, module.in_channels)] if causal else None


@describe.register(nn.RNNBase)
def _(module: nn.RNNBase) -> list[Component]:
    width = (module.proj_size or module.hidden_size) + (module.hidden_size if module.mode == "LSTM" else 0)
    return [recurrent(type(module).__name__, (1 + module.bidirectional) * module.num_layers * width)]


@describe.register(nn.RNNCellBase)
def _(module: nn.RNNCellBase) -> list[Component]:
    name = type(module).__name__.removesuffix("Cell")
    return [recurrent(name, module.hidden_size * (2 if name == "LSTM" else 1))]


def recurrent(kind: str, size: int) -> Component:
    """A recurrent network of this kind: its state, of so many numbers, changes at every token."""
    name = f"{kind} state"
    return Component(
        name,
        "memory",
        1,
        context="the tokens so far",
        objective="none of its own: the weights' loss, through time",
        rule=f"the gates of an {kind}" if kind == "LSTM" else f"the recurrence of a{'n' * (kind == 'RNN')} {kind}",
        parameters=size,
        transfers=(Transfer("context generation", "weights", name), Transfer("backpropagation", name, "weights")),
    )


@describe.register(_NormBase)
def _(module: _NormBase) -> list[Component] | None:
    """Running statistics: an exponential average is a gradient step on the squared distance to a batch's statistics."""
    if module.running_mean is None:
        return None
    name, rate = "running statistics", module.momentum
    return [
        Component(
            name,
            "memory",
            1,
            "step",
            context="means and variances of the batches",
            objective="L2 to the batch's statistics",
            rule="plain average" if rate is None else f"exponential average, step {rate:g}",
            parameters=2 * module.num_features,
            transfers=(Transfer("context generation", "weights", name), Transfer("direct", name, "weights")),
        )
    ]
