"""What the levels hold of several streams that are read side by side, as one tensor each.

S streams cost one computation in place of S. Each one's numbers are those that a `StreamMemory` of its own would hold;
only what a learner reports and protects is left out. Letters: S streams, out and in the sides of a layer's weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.continual import rules
from nestling.continual.level import Level
from nestling.continual.memory import LevelMemory, StreamMemory
from nestling.continual.weights import Linear


class LevelBatch(LevelMemory):
    """One level of S streams: factors, sums and Gram matrices have S in front."""

    def __init__(self, level: Level, layers: Sequence[Linear], streams: int):
        self.streams = streams
        super().__init__(level, layers)

    def reset(self) -> None:
        """Every stream back to the initial state."""
        super().reset()
        level = self.level
        for key, factor in self.factors.items():
            self.factors[key] = factor.detach().repeat(self.streams, 1, 1).requires_grad_()
        self.parts = {
            key: [factor] if level.rule in rules.STACKED else list(factor.detach().unbind())
            for key, factor in self.factors.items()
        }
        parts = [part for some in self.parts.values() for part in some]
        self.optimizer = rules.build(level.rule, parts, level.lr, level.options)

    @torch.no_grad()
    def step(self) -> bool:
        """Update every stream from what was taken in since the last one; False if there was nothing."""
        if not self.tokens:
            return False
        gradients = self._gradients()
        self.sums, self.grams, self.tokens = {}, {}, 0
        if self.level.clip is not None:
            norm = torch.stack([_sizes(gradient) for gradient in gradients.values()]).norm(dim=0)
            scale = (self.level.clip / norm.clamp(min=1e-30)).clamp(max=1)[:, None, None]
            gradients = {key: gradient * scale for key, gradient in gradients.items()}
        for key, parts in self.parts.items():
            for part, gradient in zip(parts, gradients[key].split(len(gradients[key]) // len(parts)), strict=True):
                part.grad = gradient.reshape(part.shape).contiguous()  # fused optimizers on CPU don't ask for strides
        self.optimizer.step()
        for (_, index), factor in self.factors.items():
            if index == 0 and self.level.retention < 1:
                factor.mul_(self.level.retention)
        self.optimizer.zero_grad()
        self.hold()
        self.updates += 1
        return True

    def _gradients(self) -> dict[tuple[str, int], Tensor]:
        gradients = super()._gradients()
        if isinstance(self.optimizer, rules.DeltaGradient):
            self.optimizer.gram = {
                part: one / self.tokens
                for name, gram in self.grams.items()
                for part, one in zip(self.parts[name, 0], gram, strict=True)
            }
        return gradients

    @torch.no_grad()
    def hold(self) -> None:
        """Shrink every deviation that has left the trust region back to its border."""
        if (limit := self.level.limit) is None:
            return
        for name, layer in self.layers.items():
            scale = (layer.weight.float().norm() * limit / _sizes(self.whole(name)).clamp(min=1e-30)).clamp(max=1)
            self.factors[name, 0].mul_(scale[:, None, None])


class StreamBatch(StreamMemory):
    """All levels of S streams, each of which has a row of every batch.

    Args:
        levels: slowest first, see `nestling.continual.level.ordered`.
        layers: of each level, by its name.
        streams: S.
    """

    def __init__(self, levels: Sequence[Level], layers: dict[str, list[Linear]], streams: int):
        self.streams: int = streams
        super().__init__(levels, layers)

    def level(self, level: Level, layers: Sequence[Linear]) -> LevelMemory:
        """The memory of one level of all streams, at its initial state."""
        return LevelBatch(level, layers, self.streams)


def _sizes(matrices: Tensor) -> Tensor:
    """Frobenius norms (S,)."""
    return matrices.flatten(1).norm(dim=1)
