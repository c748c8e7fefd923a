"""Causal softmax attention with rotary positions.

Letters: B batch, T new tokens, L kept and new tokens, P persistent tokens, H heads, G key-value heads, d width of a
head.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.errors import InputError
from nestling.layers.residual import Output
from nestling.layers.stream import common, full, join, tail
from nestling.levels.clock import Component
from nestling.levels.modules import attention

BLOCK = 64
"""Queries that are scored together at least, where a window is much shorter than the sequence."""


@functools.lru_cache(maxsize=16)
def _angles(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (length, width), float32. Made outside inference mode, so that training may use them."""
    with torch.inference_mode(False), torch.no_grad():
        rate = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
        sine = angle.sin()
        tables = torch.cat((angle.cos(),) * 2, -1), torch.cat((-sine, sine), -1)
        return tables[0].float().to(device), tables[1].float().to(device)


@torch.compiler.assume_constant_result
def angles(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_angles` of at least `length` positions, of a power of two so that few are made; a constant to the compiler."""
    return _angles(1 << max(8, (length - 1).bit_length()), width, theta, device)


def rotary(
    position: Tensor | None, length: int, width: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of `length` tokens from each sequence's `position`: CPU int64 (B,), None: all from 0.

    (length, 1, width) when all stand at the same position, else (B, length, 1, width). The tables are kept per device
    and shared by all layers.
    """
    start, last = (0, 0) if position is None else (common(position), int(position.max()))
    cosine, sine = angles(last + length, width, theta, device)
    if position is not None and start is None:
        index = (position[:, None] + torch.arange(length)).to(device)
        return cosine[index][:, :, None], sine[index][:, :, None]
    place = slice(start, last + length)
    return cosine[place, None], sine[place, None]


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of `x` (B, T, H, d) by their angles; computed in at least float32."""
    cosine, sine = tables
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine).to(x.dtype)


def check_heads(hidden_size: int, heads: int) -> None:
    """Raise InputError if the width doesn't make so many heads of an even width."""
    if hidden_size % (2 * heads):
        raise InputError(
            f"hidden_size={hidden_size} must be a multiple of twice num_attention_heads={heads}, because "
            "rotary positions turn pairs of channels: change one of the two."
        )


def persistent(tokens: int, hidden_size: int) -> nn.Parameter:
    """Learned tokens (P, D) of the size of normed ones."""
    parameter = nn.Parameter(torch.randn(tokens, hidden_size))
    parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


class Attention(nn.Module):
    """Softmax attention; its state is the cache of keys and values.

    Args:
        hidden_size: model width D.
        num_attention_heads: query heads H.
        num_key_value_heads: heads G of keys and values, each shared by H / G query heads; None: H.
        sliding_window: a token sees itself and this many minus one before it; None: all.
        rope_theta: base of the rotary wavelengths.
        persistent_tokens: number P of learned tokens in front of the sequence that every token sees, however far it is
            (Titans, arXiv 2501.00663, Sec. 3.3). They stand at no position: queries meet their keys unrotated.
        output: False: end before the output projection.

    Raises:
        InputError: D is not divisible by H, H not by G, or a head's width is odd.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int | None = None,
        sliding_window: int | None = None,
        rope_theta: float = 10000.0,
        persistent_tokens: int = 0,
        output: bool = True,
    ):
        super().__init__()
        self.heads, self.groups = num_attention_heads, num_key_value_heads or num_attention_heads
        self.window, self.theta = sliding_window, rope_theta
        check_heads(hidden_size, self.heads)
        if self.heads % self.groups:
            raise InputError(
                f"num_key_value_heads={self.groups} must divide num_attention_heads={self.heads}: choose a divisor."
            )
        self.width = hidden_size // self.heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, self.groups * self.width, bias=False)
        self.value = nn.Linear(hidden_size, self.groups * self.width, bias=False)
        self.output = Output(hidden_size, hidden_size) if output else nn.Identity()
        self.persistent = persistent(persistent_tokens, hidden_size) if persistent_tokens else None

    def reset_parameters(self) -> None:
        """Persistent tokens of the size of normed ones."""
        if self.persistent is not None:
            nn.init.normal_(self.persistent)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds rotated keys and values (B, P, G d), how many of the P rows are valid ("count") and how many
        tokens the sequence has had ("position"), CPU int64 (B,).
        """
        return self.mix(self.query(x), self.key(x), self.value(x), state, lengths, keep)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, state: dict | None, lengths: Tensor | None, keep: bool
    ) -> tuple[Tensor, dict | None]:
        """`forward` behind the projections: query (B, T, H d), key and value (B, T, G d), not yet rotated."""
        position, count = (None, None) if state is None else (state["position"], state["count"])
        tables = rotary(position, query.shape[1], self.width, self.theta, query.device)
        query = query.unflatten(-1, (-1, self.width))
        turned = rotate(query, tables)
        query = turned if self.persistent is None else torch.cat((turned, query), -1)
        key = rotate(key.unflatten(-1, (-1, self.width)), tables).flatten(2)
        if state is not None:
            key, _ = join(state["k"], state["count"], key, lengths)
            value, _ = join(state["v"], state["count"], value, lengths)
        y = self.output(self._attend(query, key, value, count))
        if not keep:
            return y, None
        new = full(*query.shape[:2]) if lengths is None else lengths
        return y, self._kept(
            key, value, new if count is None else count + new, new if position is None else position + new
        )

    def components(self) -> list[Component]:
        """Attention keeps all tokens and has no weights of its own to update (Eq. 62-63: non-parametric)."""
        return [attention(window=self.window)]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, count: Tensor | None) -> Tensor:
        """query (B, T, H, d), key and value (B, L, G d), `count` of their rows older than the queries: (B, T, D).

        With persistent tokens, queries are [rotated, unrotated] (B, T, H, 2d).

        Padding needs no mask of its own: it lies behind every real token, and a query sees nothing behind itself.
        Long sequences go in blocks of queries, each with the rows that its windows reach: linear in T.
        """
        block = None if self.window is None else max(self.window, BLOCK)
        if block is not None and query.shape[1] > 2 * block:
            first = full(len(query), 0) if count is None else count
            parts = query.split(block, 1)
            return torch.cat([self._block(q, key, value, first + i * block) for i, q in enumerate(parts)], 1)
        mask = self._mask(count, query.shape[1], key.shape[1], query.device)
        causal = mask is None and query.shape[1] > 1
        key, value = (z.unflatten(-1, (self.groups, self.width)).transpose(1, 2) for z in (key, value))
        if self.persistent is not None:
            key, value, mask = self._behind_persistent(key, value, mask)
        if self.groups < self.heads:
            key, value = (z.repeat_interleave(self.heads // self.groups, 1) for z in (key, value))
        y = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key, value, attn_mask=mask, is_causal=causal, scale=self.width**-0.5
        )
        return y[..., : self.width].transpose(1, 2).flatten(2)

    def _behind_persistent(
        self, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, G, P + L, 2d) and what each query sees of them.

        The rotated half of a query meets the keys of the sequence, the other half those of the persistent tokens.
        """
        assert self.persistent is not None
        tokens = self.persistent.clone()  # a file's tensors lie where products may round differently; a copy doesn't
        first = (linear(tokens).unflatten(-1, (self.groups, self.width)) for linear in (self.key, self.value))
        front, contents = (z.transpose(0, 1).expand(len(key), -1, -1, -1) for z in first)
        key = torch.cat((functional.pad(front, (self.width, 0)), functional.pad(key, (0, self.width))), 2)
        value = functional.pad(torch.cat((contents, value), 2), (0, self.width))  # kernels want one width for all
        return key, value, None if mask is None else functional.pad(mask, (len(tokens), 0), value=True)

    def _block(self, query: Tensor, key: Tensor, value: Tensor, first: Tensor) -> Tensor:
        """`_attend` for queries of which the first stand at rows `first` (B,), over no more rows than they reach."""
        assert self.window is not None
        low = min(max(int(first.min()) - self.window + 1, 0), key.shape[1] - 1)  # padding may stand behind all rows
        rows = slice(low, int(first.max()) + query.shape[1])
        return self._attend(query, key[:, rows], value[:, rows], first - low)

    def _mask(self, count: Tensor | None, length: int, rows: int, device: torch.device) -> Tensor | None:
        """Which of the rows (B or 1, 1, T, L) each query sees; None where plain causality says it, or all are seen."""
        old = 0 if count is None else common(count)
        inside = self.window is None or rows <= self.window
        plain = old == 0 and self.persistent is None
        if inside and (plain or (old is not None and length == 1)):
            return None
        first = old or 0
        if count is not None and old is None:
            first = count.to(device)[:, None, None, None]
        # Padding behind the last row sees what that row sees: attention over nothing is not defined everywhere.
        place = (first + torch.arange(length, device=device)[:, None]).clamp(max=rows - 1)
        row = torch.arange(rows, device=device)
        seen = row <= place
        seen = seen if self.window is None else seen & (row > place - self.window)
        return seen if seen.dim() == 4 else seen[None, None]

    def _kept(self, key: Tensor, value: Tensor, total: Tensor, position: Tensor) -> dict:
        """The state behind this call: all `total` rows, or those that the window still reaches."""
        if self.window is None:
            return {"k": key, "v": value, "count": total, "position": position}
        start = (total - self.window + 1).clamp(min=0)
        keys, kept = tail(key, start, total)
        return {"k": keys, "v": tail(value, start, total)[0], "count": kept, "position": position}
