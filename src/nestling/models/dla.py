"""DLA, deep linear attention (Atlas, arXiv 2505.23735): the dot product and decay on an MLP, so that values add up."""

from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import DotProduct
from nestling.models.neural_memory import NeuralMemoryConfig
from nestling.models.registry import register


@register("dla")
class DLAConfig(NeuralMemoryConfig):
    """W_t = alpha_t W_{t-1} + step_t grad <M(k_t), v_t>.

    The paper's: the memory, the objective and decay. Ours: a residual around the memory, decay to the initial state,
    and bounds. What the read-out writes does not depend on its state, so a whole chunk may write at full step, held
    below `1 / |x|^2` for features that grow; the hidden layer's gradient grows with the read-out, so it is bounded as
    `mean_step` says.
    """

    def memory(self) -> Memory:
        """The dot product."""
        return self.choices(DotProduct(), (GD("implicit"), self.mean_step()[1]))
