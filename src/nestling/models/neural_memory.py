"""What the models share whose token mixer is one neural memory a head."""

from torch import nn

from nestling.errors import InputError
from nestling.layers.neural_memory import NeuralMemory
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import Objective
from nestling.memory.retention import Decay
from nestling.memory.rule import Rule
from nestling.memory.run import check_run
from nestling.models.config import NestlingConfig
from nestling.models.registry import choice


class NeuralMemoryConfig(NestlingConfig):
    """A neural memory; a model says in `memory` which.

    chunk_size: tokens between the boundaries at which gradients are taken.
    memory_expansion: hidden width of a memory over the width of a head.
    memory_anchor: what retention pulls to, "initial" (the learned initial state) or "zero" (weight decay).
    memory_read: "causal", "previous" or "boundary".
    memory_readout: size of a read-out layer at the start, over that of a linear layer.
    """

    chunk_size: int = 32
    memory_expansion: int = 2
    memory_anchor: str = "initial"
    memory_read: str = "causal"
    memory_readout: float = 0.2

    def check(self) -> None:
        """Build the memory once, so that a mistake shows here."""
        super().check()
        choice("memory_anchor", self.memory_anchor, ("initial", "zero"))
        for name in ("chunk_size", "memory_expansion"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1: give a positive number.")
        if type(self) is not NeuralMemoryConfig:
            check_run(self.memory())

    def memory(self) -> Memory:
        """The memory's choices. Every model defines it."""
        raise TypeError(f"{type(self).__name__} describes no memory: use one of nestling.models.names().")

    def choices(self, objective: Objective, rules: tuple[Rule, Rule] | None = None) -> Memory:
        """A residual MLP that decays, with these rules of the read-out and the hidden layer; None: `mean_step`."""
        return Memory(
            objective=objective,
            rules=rules or self.mean_step(),
            retention=Decay(self.memory_anchor),  # pyright: ignore[reportArgumentType]
            read=self.memory_read,  # pyright: ignore[reportArgumentType]
            chunk_size=self.chunk_size,
        )

    def mean_step(self) -> tuple[Rule, Rule]:
        """Gradient steps of the read-out and the hidden layer that are bounded whatever is written.

        All steps of a chunk see the boundary's gradient and none sees the others, so full ones would add up and
        overshoot. `eta / (1 + eta |x|^2) / chunk_size` keeps their sum below the one step that a single pair allows;
        the hidden layer's gradient, which grows with the read-out, is held shorter than 1 besides.
        """
        scale = 1 / self.chunk_size
        return GD("implicit", scale), GD("implicit", scale, bounded=True)

    def neural(self, output: bool = True) -> NeuralMemory:
        """The neural memory of one block; without `output` it ends before its norm, gate and projection."""
        heads, hidden = self.num_attention_heads, self.memory_expansion * (self.hidden_size // self.num_attention_heads)
        return NeuralMemory(self.hidden_size, heads, hidden, self.memory(), self.memory_readout, output)

    def mixer(self, layer: int) -> nn.Module:
        """The neural memory."""
        return self.neural()
