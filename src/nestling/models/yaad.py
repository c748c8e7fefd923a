"""Yaad (Miras, arXiv 2504.13173, equation 26): the Huber loss and decay on an MLP, robust to values far off."""

from nestling.memory.memory import Memory
from nestling.memory.objective import Huber
from nestling.models.neural_memory import NeuralMemoryConfig
from nestling.models.registry import register


@register("yaad")
class YaadConfig(NeuralMemoryConfig):
    """W_t = alpha_t W_{t-1} - step_t grad Huber(M(k_t) - v_t), with a threshold for each head and token.

    The paper's: the memory, decay, and a loss that is L2 up to a threshold that depends on the token and linear beyond.
    Ours: the threshold acts on every coordinate (equation 14 there; its model compares the norm of the error), a
    residual around the memory without the norm inside, one gate for each head in place of each channel, steps bounded
    as `mean_step` says, and decay to the initial state.
    """

    memory_expansion: int = 4

    def memory(self) -> Memory:
        """The Huber loss; the mixer gives every token its threshold."""
        return self.choices(Huber())
