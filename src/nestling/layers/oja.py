"""OjaNet: Hebbian writing that erases along the value, by Oja's rule (Irie et al., arXiv 2206.01649; Nested Learning,
Eq. 66, its last term transposed as memory/oja.py explains).

    M_t = alpha_t M_{t-1} + eta_t v_t (k_t - M_{t-1}^T v_t)^T,    y_t = M_t q_t / sqrt(width)

All around the rule is as in Gated DeltaNet, so that the two differ in the rule alone: convolutions with SiLU, unit keys
and queries, eta = sigmoid, the decay, norm and gate. Besides, values have unit length: a step multiplies what M answers
along v by `alpha_t - eta_t |v_t|^2`, between -1 and 1 where `eta_t |v_t|^2 <= 1 + alpha_t`; a long value would make M
explode. With unit values and eta <= 1 that holds always, M answers along v_t no more than `|alpha_t - eta_t|` of what it
did plus eta_t, and the norm behind the read gives back the scale that the values lose.
"""

from torch import Tensor

from nestling.layers.delta import GatedDeltaNet
from nestling.layers.linear_memory import Tokens
from nestling.memory.stack import unit


class OjaNet(GatedDeltaNet):
    """Heads of OjaNet, all of one width.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
    """

    objective = "-2 <M(k), v> + |M^T v|^2 (Eq. 67)"
    rule = "gradient descent, step eta / 2, and decay alpha: Oja's rule"
    transposed = True

    def __init__(self, hidden_size: int, heads: int):
        super().__init__(hidden_size, heads, hidden_size // heads, hidden_size // heads)

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """A delta rule of M^T with key v and value k, whose erase the decay does not weaken."""
        plain = super().tokens(q, v, unit(k), *rates)
        return plain._replace(p=rates[1].sigmoid().unsqueeze(-1) * plain.k)
