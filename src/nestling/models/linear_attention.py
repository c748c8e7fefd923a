"""Linear attention (Katharopoulos et al., arXiv 2006.16236).

The paper adds learned positions to the embedding, which end with the training length; here there are none.
"""

from torch import nn

from nestling.errors import InputError
from nestling.layers.linear_attention import LinearAttention
from nestling.models.recurrent import RecurrentConfig
from nestling.models.registry import register


@register("linear-attention")
class LinearAttentionConfig(RecurrentConfig):
    """Attention without the softmax, and SwiGLU.

    positive_features: keys and queries are elu(x) + 1, as in the paper, else as they are.
    sum_normalizer: divide by the sum of the weights, as in the paper; False: an RMSNorm of each head instead.
    """

    positive_features: bool = True
    sum_normalizer: bool = True

    def check(self) -> None:
        """A sum of weights needs weights that cannot cancel."""
        super().check()
        if self.sum_normalizer and not self.positive_features:
            raise InputError(
                "sum_normalizer=True with positive_features=False may divide by zero: set sum_normalizer=False."
            )

    def mixer(self, layer: int) -> nn.Module:
        """Linear attention."""
        choices = self.positive_features, self.sum_normalizer
        return LinearAttention(self.hidden_size, self.num_attention_heads, *choices).using(self.kernel)
