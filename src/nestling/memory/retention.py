"""Retention: what a memory keeps of its past at every token (Nested Learning, Eq. 64, 66, 68, 88; L_q, KL: Miras).

The recurrence runs on a matrix `Z`, from which the weights are `W = link(Z)`:

    Z_t = Z_{t-1} (alpha_t I - xi_t x_t x_t^T) + (1 - alpha_t) A + written rows

For decays the link is the identity. For L_q and KL it is not linear; the gradients are taken at the weights of the
chunk's boundary, so `Z` still has a parallel form, and so have reads at the boundary. A read inside the chunk needs
`link(Z_t)` for every token: only the token-by-token definition has it.

The anchor A is what retention pulls to: "initial", the state at the start of the context (a memory that starts from
learned weights stays alive), or "zero", the paper's letter (weight decay).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from nestling.errors import InputError

Anchor = Literal["initial", "zero"]


class Retention(Protocol):
    """How retention acts."""

    @property
    def anchor(self) -> Anchor:
        """What retention pulls to."""
        ...

    @property
    def per_channel(self) -> bool:
        """`alpha` has one value for every input channel of the layer, `W diag(alpha)`."""
        ...

    @property
    def linear(self) -> bool:
        """The link is the identity."""
        ...

    def link(self, z: Tensor) -> Tensor:
        """Weights `(..., out, in)` of the recurrent matrix."""
        ...

    def unlink(self, w: Tensor) -> Tensor:
        """A recurrent matrix whose weights are about `w (..., out, in)`: where a memory may start."""
        ...


@dataclass(frozen=True)
class Decay:
    """One `alpha` in [0, 1] a token for the whole matrix."""

    anchor: Anchor = "initial"
    per_channel = False
    linear = True

    def link(self, z: Tensor) -> Tensor:
        """The matrix itself."""
        return z

    def unlink(self, w: Tensor) -> Tensor:
        """The matrix itself."""
        return w


@dataclass(frozen=True)
class ChannelDecay(Decay):
    """One `alpha` in [0, 1] a token and input channel, `alpha (..., T, in)`; with Oja, which is a rule of `W^T`, output
    channel."""

    per_channel = True


@dataclass(frozen=True)
class Lq:
    """L_q retention: `W = Z / |Z|_q^(q - 2)` with the entrywise norm of the whole matrix (Moneta, q = 4).

    `q = 2` is plain decay. This is the formula as the Miras paper prints it; the mirror map of `|W|_q^2` would also
    raise every entry to a power. For q > 3 it shrinks W as Z grows; `smooth` (added to `|Z|_q^q`) bounds it near Z = 0.
    """

    q: float = 4.0
    anchor: Anchor = "initial"
    smooth: float = 1e-6
    per_channel = False
    linear = False

    def __post_init__(self) -> None:
        if self.q < 2 or self.smooth <= 0:
            raise InputError(f"Lq(q={self.q}, smooth={self.smooth}) needs q >= 2 and smooth > 0; use Lq(q=4).")

    def link(self, z: Tensor) -> Tensor:
        """`Z / (sum |Z|^q + smooth)^((q - 2) / q)`."""
        power = (z.square() ** (self.q / 2)).sum((-2, -1), keepdim=True) + self.smooth
        return z / power ** ((self.q - 2) / self.q)

    def unlink(self, w: Tensor) -> Tensor:
        """`W |W|_q^((q - 2) / (3 - q))`, exact but for `smooth`; with q = 3 every link has norm 1 and W is returned."""
        power = (w.abs() ** self.q).sum((-2, -1), keepdim=True)
        return w if self.q == 3 else w * power ** ((self.q - 2) / (3 - self.q) / self.q)


@dataclass(frozen=True)
class KL:
    """KL retention (Memora): `W_t = scale softmax(alpha_t log W_{t-1} - eta_t grad)`, so `W = scale softmax(Z)`.

    The softmax runs over the input channels of each output row (the last axis), so each row is a distribution of mass
    `scale`. It ignores what is constant along the row, which is why `log W` may be replaced by `Z`. The anchor acts on
    `Z`, that is, geometrically on W; "zero" is the uniform distribution.
    """

    scale: float = 1.0
    anchor: Anchor = "initial"
    per_channel = False
    linear = False

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise InputError(f"KL(scale={self.scale}) needs a scale > 0; use KL(1.0).")

    def link(self, z: Tensor) -> Tensor:
        """`scale softmax(Z)` along the last axis."""
        return self.scale * z.softmax(-1)

    def unlink(self, w: Tensor) -> Tensor:
        """`W in / scale`, whose link is W to first order, up to a constant for each row."""
        return w * (w.shape[-1] / self.scale)
