"""Memora (Miras, arXiv 2504.13173, equation 21): L2 and KL retention on an MLP, whose weights are distributions."""

from dataclasses import replace

from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2
from nestling.memory.retention import KL
from nestling.models.neural_memory import NeuralMemoryConfig
from nestling.models.registry import register


@register("memora")
class MemoraConfig(NeuralMemoryConfig):
    """W_t = c softmax(alpha_t log W_{t-1} - step_t grad 1/2 |M(k_t) - v_t|^2), each row a distribution of mass c.

    The paper's: the memory, the loss, the retention. Ours: a residual around the memory without the norm inside, one
    gate for each head in place of each channel, weights that are read and differentiated at the end of every chunk,
    c = the square root of a head's width (the paper leaves it open), decay to the initial state, in log W, and bounds:
    a step on log W moves a weight by c / inputs as much, so steps are `inputs / c` times those of `mean_step`.

    memory_read: only "boundary" has a parallel form.
    """

    chunk_size: int = 16
    memory_expansion: int = 4
    memory_read: str = "boundary"
    memory_readout: float = 1.0

    def memory(self) -> Memory:
        """L2 with KL retention."""
        width = self.hidden_size // self.num_attention_heads
        mass = width**0.5
        reach = 1 / (mass * self.chunk_size)
        rules = GD("implicit", self.memory_expansion * width * reach), GD("implicit", width * reach, bounded=True)
        retention = KL(mass, self.memory_anchor)  # pyright: ignore[reportArgumentType]
        return replace(self.choices(L2(), rules), retention=retention)
