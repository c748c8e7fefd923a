"""Causal softmax attention with rotary positions.

Letters: B batch, T new tokens, L kept and new tokens, H heads, G key-value heads, d width of a head.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.errors import InputError
from nestling.layers.residual import Output
from nestling.layers.stream import common, full, join, tail


@functools.lru_cache(maxsize=16)
def _angles(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (length, width), float32. Made outside inference mode, so that training may use them."""
    with torch.inference_mode(False), torch.no_grad():
        rate = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
        sine = angle.sin()
        tables = torch.cat((angle.cos(),) * 2, -1), torch.cat((-sine, sine), -1)
        return tables[0].float().to(device), tables[1].float().to(device)


def rotary(position: Tensor, length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of `length` tokens from each sequence's `position` (CPU int64 (B,)).

    (length, 1, width) when all stand at the same position, else (B, length, 1, width). Tables of power-of-two length
    are kept per device and shared by all layers.
    """
    needed = max(256, int(position.max()) + length)
    cosine, sine = _angles(1 << (needed - 1).bit_length(), width, theta, device)
    start = common(position)
    if start is not None:
        return cosine[start : start + length, None], sine[start : start + length, None]
    index = (position[:, None] + torch.arange(length)).to(device)
    return cosine[index][:, :, None], sine[index][:, :, None]


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of `x` (B, T, H, d) by their angles; computed in at least float32."""
    cosine, sine = tables
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine).to(x.dtype)


class Attention(nn.Module):
    """Softmax attention; its state is the cache of keys and values.

    Args:
        hidden_size: model width D.
        num_attention_heads: query heads H.
        num_key_value_heads: heads G of keys and values, each shared by H / G query heads; None: H.
        sliding_window: a token sees itself and this many minus one before it; None: all.
        rope_theta: base of the rotary wavelengths.

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
    ):
        super().__init__()
        self.heads, self.groups = num_attention_heads, num_key_value_heads or num_attention_heads
        self.window, self.theta = sliding_window, rope_theta
        if hidden_size % (2 * self.heads):
            raise InputError(
                f"hidden_size={hidden_size} must be a multiple of twice num_attention_heads={self.heads}, because "
                "rotary positions turn pairs of channels: change one of the two."
            )
        if self.heads % self.groups:
            raise InputError(
                f"num_key_value_heads={self.groups} must divide num_attention_heads={self.heads}: choose a divisor."
            )
        self.width = hidden_size // self.heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, self.groups * self.width, bias=False)
        self.value = nn.Linear(hidden_size, self.groups * self.width, bias=False)
        self.output = Output(hidden_size, hidden_size)

    def forward(
        self, x: Tensor, state: dict | None = None, lengths: Tensor | None = None, keep: bool = False
    ) -> tuple[Tensor, dict | None]:
        """x (B, T, D) -> (B, T, D).

        The state holds rotated keys and values (B, P, G d), how many of the P rows are valid ("count") and how many
        tokens the sequence has had ("position"), CPU int64 (B,).
        """
        batch, length, _ = x.shape
        none = full(batch, 0)
        position = none if state is None else state["position"]
        tables = rotary(position, length, self.width, self.theta, x.device)
        query = rotate(self.query(x).unflatten(-1, (-1, self.width)), tables)
        key = rotate(self.key(x).unflatten(-1, (-1, self.width)), tables).flatten(2)
        value = self.value(x)
        count = none if state is None else state["count"]
        if state is None:
            total = full(batch, length) if lengths is None else lengths
        else:
            key, total = join(state["k"], count, key, lengths)
            value, _ = join(state["v"], count, value, lengths)
        y = self._attend(query, key, value, count)
        return self.output(y), self._kept(key, value, position, count, total) if keep else None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, count: Tensor) -> Tensor:
        """query (B, T, H, d), key and value (B, L, G d), `count` of their rows older than the queries: (B, T, D).

        Padding needs no mask of its own: it lies behind every real token, and a query sees nothing behind itself.
        """
        key, value = (z.unflatten(-1, (self.groups, self.width)).transpose(1, 2) for z in (key, value))
        if self.groups < self.heads:
            key, value = (z.repeat_interleave(self.heads // self.groups, 1) for z in (key, value))
        mask = self._mask(count, query.shape[1], key.shape[2], query.device)
        first = mask is None and query.shape[1] > 1
        y = functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask, is_causal=first)
        return y.transpose(1, 2).flatten(2)

    def _mask(self, count: Tensor, length: int, rows: int, device: torch.device) -> Tensor | None:
        """Which of the rows (B or 1, 1, T, L) each query sees; None where plain causality says it, or all are seen."""
        old, window = common(count), self.window or rows + length
        if old is not None and rows <= window and (old == 0 or length == 1):
            return None
        first = (count if old is None else count[:1]).to(device)[:, None, None, None]
        place = (first + torch.arange(length, device=device)[:, None]).clamp(max=rows - 1)
        row = torch.arange(rows, device=device)
        return (row <= place) & (row > place - window)

    def _kept(self, key: Tensor, value: Tensor, position: Tensor, count: Tensor, total: Tensor) -> dict:
        """The state behind this call: all rows, or those that the window still reaches."""
        position = position + total - count
        if self.window is None:
            return {"k": key, "v": value, "count": total, "position": position}
        start = (total - self.window + 1).clamp(min=0)
        keys, kept = tail(key, start, total)
        return {"k": keys, "v": tail(value, start, total)[0], "count": kept, "position": position}
