"""Linear attention: a memory that only adds (Katharopoulos et al., arXiv 2006.16236; Nested Learning, Eq. 14-16).

S_t = S_{t-1} + v_t phi(k_t)^T,  z_t = z_{t-1} + phi(k_t),  y_t = S_t phi(q_t) / <z_t, phi(q_t)>,  phi(x) = elu(x) + 1
"""

from torch import Tensor, nn
from torch.nn.functional import pad

from nestling.layers.linear_memory import LinearMemory, Tokens
from nestling.memory.feature import Feature, Identity, Positive

EPS = 1e-6


class LinearAttention(LinearMemory):
    """Heads of linear attention.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        positive: keys and queries are elu(x) + 1, else as they are.
        normalizer: divide by the sum of the weights, as the paper does: `z` is one more row of the memory, that of the
            value 1. Else a norm of each head takes its place.
    """

    objective = "dot product <M(k), v>"
    rule = "gradient descent, step 1"

    def __init__(self, hidden_size: int, heads: int, positive: bool = True, normalizer: bool = True):
        super().__init__(hidden_size, heads, hidden_size // heads, hidden_size // heads)
        self.feature: Feature = Positive() if positive else Identity()
        self.normalizer = normalizer
        if normalizer:
            self.norm = nn.Identity()

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """Features, and values with a 1 behind them where weights are summed."""
        v = pad(v, (0, 1), value=1.0) if self.normalizer else v
        return Tokens(self.feature(q) * q.shape[-1] ** -0.5, self.feature(k), v, q.new_zeros(q.shape[2]))

    def read(self, y: Tensor) -> Tensor:
        """The weighted mean of the values."""
        return y[..., :-1] / (y[..., -1:] + EPS) if self.normalizer else y
