"""Moneta (Miras, arXiv 2504.13173, equations 24 and 25): an L_p loss and L_q retention on an MLP."""

from dataclasses import replace

from nestling.memory.memory import Memory
from nestling.memory.objective import Lp
from nestling.memory.retention import Lq
from nestling.models.neural_memory import NeuralMemoryConfig
from nestling.models.registry import register


@register("moneta")
class MonetaConfig(NeuralMemoryConfig):
    """Z_t = alpha_t Z_{t-1} - step_t grad 1/p |M(k_t) - v_t|_p^p, W = Z / |Z|_q^(q - 2) at the end of every chunk.

    The paper's: the memory, the loss smoothed at zero, the normalization, p = 3 and q = 4. Ours: a residual around the
    memory without the norm inside, one gate for each head in place of each channel, steps bounded as `mean_step` says
    (for both layers, since this loss grows faster than L2), and decay to the initial state, in Z.

    memory_p, memory_q: the two norms. memory_read: only "boundary" has a parallel form.
    """

    memory_p: float = 3.0
    memory_q: float = 4.0
    chunk_size: int = 16
    memory_expansion: int = 4
    memory_read: str = "boundary"
    memory_readout: float = 1.0

    def memory(self) -> Memory:
        """L_p with L_q retention."""
        hidden = self.mean_step()[1]
        retention = Lq(self.memory_q, self.memory_anchor)  # pyright: ignore[reportArgumentType]
        return replace(self.choices(Lp(self.memory_p), (hidden, hidden)), retention=retention)
