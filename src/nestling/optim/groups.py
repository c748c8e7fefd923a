"""Which parameter gets which rule."""

import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from nestling.errors import InputError
from nestling.levels.clock import step_periods
from nestling.optim.base import RULES

HEADS = ("head", "lm_head", "classifier", "score")
"""Names by which a linear layer is an output head, besides what `get_output_embeddings` returns."""
THIN = 8
"""A matrix with a side shorter than this (filters of a short convolution, gates) is a few vectors."""


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups with the `names` of their parameters; `print` shows them as a table."""

    def __str__(self) -> str:
        """One line for all parameters of the same kind: name (layers together), shape, number, settings."""
        kinds: Counter[tuple[str, ...]] = Counter()
        for group in self:
            settings = [f"{key}={value}" for key, value in group.items() if key not in ("params", "names", "rule")]
            for name, parameter in zip(group["names"], group["params"], strict=True):
                shape = " x ".join(map(str, parameter.shape)) or "1"
                kinds[re.sub(r"(?<=\.)\d+(?=\.)", "*", name), shape, group["rule"], ", ".join(settings)] += 1
        rows = [("parameter", "shape", "of these", "rule", "settings")]
        rows += [(name, shape, str(count), *rest) for (name, shape, *rest), count in kinds.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def param_groups(model: nn.Module, overrides: Mapping[str, str | dict[str, Any]] | None = None) -> ParamGroups:
    """Groups for any of our optimizers, e.g. `M3(param_groups(model), lr=1e-3)`.

        hidden matrices and convolutions          the optimizer's own rule ("matrix")
        output heads                              AdamW
        embeddings, vectors, thin matrices, what  AdamW without weight decay
          says `_no_weight_decay = True`

    The last are, for example, the memories' initial states: starting points rather than weights. Thin is a matrix with
    a side below 8. A tied parameter appears once, under its first name; frozen ones are left out. Where a module asks
    for a `period` above 1 (`nestling.levels.step_periods`), the group has it, for `MultiFrequency` to keep.

    Args:
        model: any module.
        overrides: glob pattern of parameter names -> a rule ("matrix", "adamw"), or settings of a group such as
            `{"lr": 1e-4}` or `{"rule": "adamw", "weight_decay": 0.0}`. Later patterns have the last word.

    Raises:
        InputError: a pattern that matches no trainable parameter, or an unknown rule.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    wanted = {pattern: _settings(pattern, value) for pattern, value in (overrides or {}).items()}
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise InputError(
                f"overrides: no trainable parameter's name matches '{pattern}'; names look like '{named[0][0]}'."
                if named
                else f"overrides: '{pattern}' matches nothing, because the model has no trainable parameter."
            )
    embeddings, heads, periods = _embeddings(model), _heads(model), step_periods(model)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        settings = _standard(parameter, id(parameter) in embeddings, id(parameter) in heads)
        if periods[parameter] > 1:
            settings = settings | {"period": periods[parameter]}
        for pattern, change in wanted.items():
            if fnmatchcase(name, pattern):
                settings = settings | change
        group = groups.setdefault(repr(sorted(settings.items())), {"params": [], "names": [], **settings})
        group["params"].append(parameter)
        group["names"].append(name)
    return ParamGroups(groups.values())


def _standard(parameter: Tensor, embedding: bool, head: bool) -> dict[str, Any]:
    """The settings of a parameter that no override speaks of."""
    sides = (parameter.shape[0], parameter.shape[1:].numel()) if parameter.ndim > 1 else (1, 1)
    if embedding or min(sides) < THIN or getattr(parameter, "_no_weight_decay", False):
        return {"rule": "adamw", "weight_decay": 0.0}
    return {"rule": "adamw" if head else "matrix"}


def _settings(pattern: str, value: str | dict[str, Any]) -> dict[str, Any]:
    settings = {"rule": value} if isinstance(value, str) else dict(value)
    if settings.get("rule", "auto") not in RULES:
        raise InputError(f"overrides: '{pattern}' asks for the rule '{settings['rule']}'; give {' or '.join(RULES)}.")
    return settings


def _embeddings(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}


def _heads(model: nn.Module) -> set[int]:
    """Weights of the output heads."""
    found = [m for name, m in model.named_modules() if name.rpartition(".")[2] in HEADS]
    if hasattr(model, "get_output_embeddings"):
        found.append(model.get_output_embeddings())  # pyright: ignore[reportCallIssue]
    return {id(module.weight) for module in found if isinstance(getattr(module, "weight", None), Tensor)}
