"""Optimizers that look at a layer's inputs, given inputs by hand: for tests that have parameters but no layers."""

import torch

from nestling.optim.base import takes_matrix_rule
from nestling.optim.inputs import Rows
from nestling.optim.layerwise import LayerOptimizer

SIZE = 1e-4
"""Of the inputs: so small that steps are those of gradient descent to rounding, and zero gradients move nothing."""


def fed(kind: type[LayerOptimizer]) -> type[LayerOptimizer]:
    """`kind`, which sees at every step, for every matrix with a gradient G, inputs X and deltas D with `D^T X = G`."""

    class Fed(kind):
        def _check_gradients(self) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and p.grad.layout == torch.strided and takes_matrix_rule(p, group):
                        rows = Rows(p, None, self.deltas)
                        grad = p.grad.reshape(1, -1) if p.ndim < 2 else p.grad.flatten(1)
                        rows.see(SIZE * torch.eye(grad.shape[1]), grad.float().mT / SIZE)
                        rows.commit()
                        self.inputs._rows[p] = rows
            super()._check_gradients()

    return Fed
