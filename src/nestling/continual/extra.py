"""Extra MLP blocks that start as the identity, for levels of a pre-trained model (Nested Learning, Sec. 7.3).

They continue the chain of Eq. 70 behind a decoder layer's MLP, which stays its first block. They are attached by a
forward hook on the module that gives the MLP's output, because that works for every model of which this module is
known, whatever its layer computes before and after, and leaves the model's own code and classes alone. The blocks
themselves are a submodule `extra` of the decoder layer, so that names, `parameters()`, `state_dict` and `.to()` include
them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle


class ExtraBlock(nn.Module):
    """`x + W_down gelu(W_up n)`, `n` = x over its root mean square. W_down starts at zero: the block is the identity.

    Args:
        width: D, of the residual stream.
        hidden: I, of the block.
        like: a weight whose dtype and device the block takes.
        generator: of W_up, normal with variance 1/D.
    """

    def __init__(self, width: int, hidden: int, like: Tensor, generator: torch.Generator):
        super().__init__()
        # From the device "meta": torch's own start would be thrown away, and draw from the global generator.
        self.up = nn.Linear(width, hidden, bias=False, dtype=like.dtype, device="meta").to_empty(device=like.device)
        self.down = nn.Linear(hidden, width, bias=False, dtype=like.dtype, device="meta").to_empty(device=like.device)
        with torch.no_grad():
            self.up.weight.copy_(torch.randn(hidden, width, generator=generator) * width**-0.5)
            self.down.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D), in the dtype of x."""
        n = functional.rms_norm(x, x.shape[-1:], eps=1e-5)
        return x + self.down(functional.gelu(self.up(n))).to(x.dtype)


class Extras(nn.ModuleDict):
    """The extra blocks of one decoder layer, by the name of their level, in the order in which they are applied."""

    handle: RemovableHandle | None = None

    def attach(self, site: nn.Module) -> None:
        """Apply the blocks to what `site` returns from now on."""
        self.handle = site.register_forward_hook(self._after)

    def detach(self) -> None:
        """Leave the site as it was."""
        if self.handle is not None:
            self.handle.remove()

    def _after(self, site: nn.Module, inputs: tuple, output: Any) -> Any:
        """The MLP's output (..., D), or a tuple that begins with it, with the blocks applied."""
        y, *rest = output if isinstance(output, tuple) else (output,)
        for block in self.values():
            y = block(y)
        return (y, *rest) if isinstance(output, tuple) else y
