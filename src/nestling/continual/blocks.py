"""The MLP blocks of a causal language model, found by its structure: ours and those of transformers.

A decoder layer is an element of the model's outermost list of modules, and its parts are the layer's children. A part
is an MLP if all its matrices are linear layers that lead from the residual stream to a hidden width and back:

    up (D, I), down (I, D)      gate and up (D, I) each, down (I, D)      both in one (D, 2I), down (I, D)

or several such blocks, each in a module of its own (a chain of the Continuum Memory System). Children of a single
linear layer are taken together: OPT's fc1 and fc2. Attention does not look like this: it has four projections, or keys
narrower than queries, or three in one; the one fused shape that does is known by its attribute `is_causal`. Where
several parts of a layer qualify, the MLP is the largest. No class of transformers is asked for by name.

Letters: D model width, I hidden width; shapes are (in, out).
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from nestling.continual.extra import Extras
from nestling.errors import InputError
from nestling.layers.cms import CMSBlock

TRAINABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of weights in which a deviation can be written; quantized ones are read as no linear layer."""

Where = str | Sequence[str] | Sequence[int] | None


@dataclass(frozen=True)
class FeedForward:
    """The MLP of one decoder layer, by names: the layer, the module `site` that gives the MLP's output, its matrices.

    down: the matrix that leads back to the stream, of the last block if the MLP is a chain.
    """

    layer: str
    site: str
    matrices: list[str]
    down: str


def linear_like(module: nn.Module) -> bool:
    """Whether `module` is a linear layer: nn.Linear, or GPT-2's Conv1D, whose weight is (in, out) and out its `nf`."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.dtype not in TRAINABLE:
        return False
    if isinstance(module, nn.Linear):
        return weight.shape == (module.out_features, module.in_features)
    return weight.shape[1] == getattr(module, "nf", None)


def sides(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear-like module."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def mlp_blocks(model: nn.Module) -> list[list[str]]:
    """Per decoder layer, in order, the names of the linear-like modules of its MLP; extra blocks are left out.

    Raises:
        InputError: a layer without an MLP of plain linear layers, an encoder-decoder, or no list of decoder layers.
    """
    return [found.matrices for found in feed_forwards(model)]


def matching(model: nn.Module, where: Where = None) -> list[str]:
    """Names of linear-like modules, in the model's order of modules.

    Args:
        model: the language model.
        where: None: those of all MLP blocks. "linear": all but the output head. Integers: the MLP blocks of these
            decoder layers, negative ones from the end. Else a pattern of qualified names, or several, as in a shell
            (`*` runs over dots): the modules that match any of them.

    Raises:
        InputError: a layer or pattern that selects nothing, or a mixture of both.
    """
    names = {name: module for name, module in model.named_modules() if linear_like(module)}
    if where is None:
        chosen = {name for block in mlp_blocks(model) for name in block}
    elif where == "linear":
        head = getattr(model, "get_output_embeddings", lambda: None)()
        chosen = {name for name, module in names.items() if module is not head}
    else:
        wanted = [where] if isinstance(where, str) else list(where)
        if {type(one) for one in wanted} not in ({int}, {str}):
            raise InputError(f"where={where!r} is not possible: give None, 'linear', layer numbers or name patterns.")
        chosen = _of_layers(model, wanted) if isinstance(wanted[0], int) else _of_patterns(list(names), wanted)
    return [name for name in names if name in chosen]


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The MLP of each decoder layer; see `mlp_blocks`."""
    return [_read(name, layer) for name, layer in _layers(model)]


def _of_layers(model: nn.Module, wanted: Sequence[Any]) -> set[str]:
    blocks = mlp_blocks(model)
    for number in wanted:
        if not -len(blocks) <= number < len(blocks):
            raise InputError(f"where: there is no decoder layer {number}: give {-len(blocks)} to {len(blocks) - 1}.")
    return {name for number in wanted for name in blocks[number]}


def _of_patterns(names: list[str], wanted: Sequence[Any]) -> set[str]:
    chosen: set[str] = set()
    for pattern in wanted:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.3) or names[:2]
            looks = f"names look like {' and '.join(map(repr, near))}" if near else "it has none"
            raise InputError(f"where: no linear layer of the model matches '{pattern}'; {looks}.")
        chosen |= found
    return chosen


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder layers with their names. Where there are several lists, the one inside `get_decoder()` counts."""
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError(f"model is a {kind}, which is an encoder and a decoder: give a decoder-only language model.")
    stacks = dict(_stacks("", model))
    if len(stacks) > 1 and hasattr(model, "get_decoder"):
        inside = set(model.get_decoder().modules())  # pyright: ignore[reportCallIssue]
        stacks = {name: stack for name, stack in stacks.items() if stack in inside} or stacks
    if len(stacks) != 1:
        found = f"{len(stacks)} lists of layers ({', '.join(stacks)})" if stacks else "no list of layers"
        raise InputError(f"model {kind} has {found}, but one is needed to find MLP blocks: give where= as patterns.")
    [(name, stack)] = stacks.items()
    return [(f"{name}.{place}", layer) for place, layer in stack.named_children()]


def _stacks(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost lists whose elements are modules with matrices inside."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) and all(map(_composed, child)):
            yield prefix + name, child
        else:
            yield from _stacks(f"{prefix}{name}.", child)


def _composed(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(map(_matrix, module.parameters()))


def _matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1


def _read(name: str, layer: nn.Module) -> FeedForward:
    """The MLP of one layer: of the parts that are one, the largest."""
    found: list[tuple[str, dict[str, Any]]] = []
    alone: dict[str, Any] = {}
    for part, child in layer.named_children():
        if isinstance(child, Extras) or hasattr(child, "is_causal"):
            continue
        inside = _linears(f"{name}.{part}", child)
        if len(inside) == 1:
            alone |= inside
        elif _down(inside):
            found.append((f"{name}.{part}", inside))
    if down := _down(alone):
        found.append((down, alone))
    if not found:
        raise InputError(_unreadable(name, layer))
    site, inside = max(found, key=lambda one: sum(module.weight.numel() for module in one[1].values()))
    return FeedForward(name, site, list(inside), _down(inside) or site)


def _linears(name: str, part: nn.Module) -> dict[str, Any]:
    """The linear layers of a part, by name; none if it holds other matrices, such as batched experts, besides."""
    own = [module for module in part.modules() if isinstance(module, CMSBlock)]
    # A block with a signal of its own has slow projections besides, which generate its targets and rates.
    initial = {id(weight) for block in own for weight in block.initial}
    slow = {id(p) for block in own for p in block.parameters() if id(p) not in initial}
    found = {}
    for path, module in part.named_modules(prefix=name):
        matrices = [p for p in module.parameters(recurse=False) if _matrix(p) and id(p) not in slow]
        if matrices and not linear_like(module):
            return {}
        if matrices:
            found[path] = module
    return found


def _down(linears: dict[str, Any]) -> str | None:
    """The name of the matrix that leads back to the stream, the last one of several blocks; None if they are none."""
    groups: dict[str, dict[str, Any]] = {}
    for name, module in linears.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = module
    if one := _down_of_one(linears):
        return one
    downs = [_down_of_one(group) for group in groups.values()]
    return downs[-1] if downs and all(downs) else None


def _down_of_one(linears: dict[str, Any]) -> str | None:
    """The same of a single block."""
    if len(linears) not in (2, 3):
        return None
    shapes = {name: sides(module) for name, module in linears.items()}
    for name, (hidden, width) in reversed(shapes.items()):
        others = [shape for other, shape in shapes.items() if other != name]
        if set(others) == {(width, hidden)} or others == [(width, 2 * hidden)]:
            return name
    return None


def _unreadable(name: str, layer: nn.Module) -> str:
    """The sentence about a layer without an MLP that can be read."""
    parts = [
        f"{part} ({type(child).__name__})"
        for part, child in layer.named_children()
        if any(map(_matrix, child.parameters()))
    ]
    reasons = []
    plain = [m for m in layer.modules() if not type(m).__name__.startswith("Conv")]
    if any(p.ndim > 2 and min(p.shape) > 1 for m in plain for p in m.parameters(recurse=False)):
        reasons.append("it has batched weights, as a mixture of experts has")
    kinds = {str(m.weight.dtype) for m in layer.modules() if isinstance(m, nn.Linear) and not linear_like(m)}
    if kinds:
        reasons.append(f"its linear layers are quantized ({', '.join(sorted(kinds))})")
    why = f" ({' and '.join(reasons)})" if reasons else ""
    return (
        f"decoder layer {name} has no MLP of plain linear layers{why}; its parts are {', '.join(parts) or 'none'}: "
        "2 or 3 matrices from the model width to a hidden one and back are supported; else give where= as patterns."
    )
