"""Comba: the delta rule in a closed loop (Hu et al., arXiv 2506.02475, formula 5).

    S_t = S_{t-1} (alpha_t I - b beta_t k_t k_t^T) + beta_t v_t k_t^T
    y_t = S_t unit(q_t - d k_t) / sqrt(width)

The answer to the key corrects both what is written (b, the sigmoid of a learned number a head) and what is read (d, a
learned number a head): the query loses what the key has in common with it. The decay does not act on what is erased.
Keys have unit length, but not yet where d takes them from the query; alpha and beta are those of Gated DeltaNet, the
output gate is a sigmoid.

The authors' kernels bring b k to unit length again, so that b drops out of the erase; here it acts, as in formula 5.
There d k stands for d b k too, which is the same with another start of d.
"""

import torch
from torch import Tensor, nn

from nestling.layers.delta import GatedDeltaNet
from nestling.layers.linear_memory import Tokens


class Feedback(nn.Module):
    """The two gains of the loop, one pair a head: the logit of b, and d, which starts at `correction`."""

    def __init__(self, heads: int, correction: float):
        super().__init__()
        self.start = correction
        self.erase, self.query = (nn.Parameter(torch.empty(heads)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """b = sigmoid(1) = 0.73."""
        nn.init.ones_(self.erase)
        nn.init.constant_(self.query, self.start)


class Comba(GatedDeltaNet):
    """Heads of Comba.

    Args:
        hidden_size: model width D.
        heads: number of heads H, which divides D.
        correction: where d starts.
    """

    rule = "gradient descent, step beta, on an answer times b, and decay alpha"
    activation = staticmethod(torch.sigmoid)

    def __init__(self, hidden_size: int, heads: int, correction: float):
        width = hidden_size // heads
        super().__init__(hidden_size, heads, width, width)
        self.feedback = Feedback(heads, correction)

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, *rates: Tensor) -> Tokens:
        """The corrected query, the delta rule with decay and a weaker erase."""
        b, d = (z.to(q.dtype)[:, None, None] for z in (self.feedback.erase.sigmoid(), self.feedback.query))
        plain = super().tokens(q - d * k, k, v, *rates)
        beta = rates[1].sigmoid().unsqueeze(-1)
        return plain._replace(p=b * beta * plain.k)
