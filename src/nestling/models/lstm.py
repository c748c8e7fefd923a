"""The LSTM (Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000) as a language model."""

from torch import nn

from nestling.layers.lstm import LSTM
from nestling.models.config import NestlingConfig
from nestling.models.registry import register


@register("lstm")
class LSTMConfig(NestlingConfig):
    """One LSTM layer as wide as the model in every block, and SwiGLU.

    Where it departs from a plain stack of LSTMs: pre-norm residual blocks with SwiGLU between the layers, one bias in
    place of torch's two, which only ever act as their sum. num_attention_heads plays no part.
    """

    def mixer(self, layer: int) -> nn.Module:
        """A long short-term memory."""
        return LSTM(self.hidden_size)
