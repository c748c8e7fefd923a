"""Optimizers that look at a layer's inputs, given inputs by hand: for tests that have parameters but no layers."""

from typing import Any

import torch
import torch.distributed

from nestling.optim.base import takes_matrix_rule
from nestling.optim.inputs import Rows
from nestling.optim.layerwise import LayerOptimizer, whole

SIZE = 1e-4
"""Of the inputs: so small that steps are those of gradient descent to rounding, and zero gradients move nothing."""


def fed(kind: type[LayerOptimizer]) -> type[LayerOptimizer]:
    """`kind`, which sees at every step, for every matrix with a gradient G, inputs X and deltas D with `D^T X = G`.

    All processes see the same, and average over each other.
    """

    class Fed(kind):
        def __init__(self, params: Any, **settings: Any):
            group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
            super().__init__(params, process_group=group, **settings)

        def _check_gradients(self) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and p.grad.layout == torch.strided and takes_matrix_rule(p, group):
                        self.inputs._rows[p] = _rows(p, self.deltas)
            super()._check_gradients()

    return Fed


def _rows(p: Any, deltas: bool) -> Rows:
    rows, grad = Rows(p, None, deltas), whole(p.grad)
    grad = grad.reshape(1, -1) if p.ndim < 2 else grad.flatten(1)
    rows.see(SIZE * torch.eye(grad.shape[1]), grad.mT / SIZE)
    rows.commit()
    return rows
