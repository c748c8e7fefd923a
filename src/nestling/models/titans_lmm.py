"""Titans' long-term memory alone, LMM (arXiv 2501.00663, equations 8 to 15): L2, momentum and decay on an MLP."""

from dataclasses import replace

from nestling.memory.memory import Memory, Momentum
from nestling.memory.objective import L2
from nestling.models.neural_memory import NeuralMemoryConfig
from nestling.models.registry import choice, register


@register("titans-lmm")
class TitansLMMConfig(NeuralMemoryConfig):
    """S_t = beta_t S_{t-1} - step_t grad |M(k_t) - v_t|^2, W_t = alpha_t W_{t-1} + S_t.

    The paper's: the two-layer memory, the objective, momentum and decay, gradients at the chunk's start, short
    convolutions with SiLU, unit queries and keys, a gate behind the norm. Ours: a residual around the memory, steps
    bounded as `mean_step` says, a momentum of gain one, and decay to the initial state.

    memory_momentum: "average" (gain one), "letter" (the paper's, gain 1 / (1 - beta)) or "none".
    """

    memory_momentum: str = "average"

    def memory(self) -> Memory:
        """L2 with momentum."""
        momenta = {"average": Momentum(), "letter": Momentum(average=False), "none": None}
        choice("memory_momentum", self.memory_momentum, momenta)
        return replace(self.choices(L2()), momentum=momenta[self.memory_momentum])
