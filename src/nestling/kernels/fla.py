"""The linear memory on a GPU by the kernels of flash-linear-attention (package fla-core), where it is installed.

`recurrence` gives a twin of `memory.recurrence.recur`. Three of its kernels hold all cases, with h = S^T and

    simple_gla     h_t = e^g h_{t-1} + k v^T                                       linear attention, RetNet
    comba          h_t = e^g h_{t-1} + k beta (v - e^g h_{t-1}^T p)^T              every delta rule, Comba
    rwkv7          h_t = diag(e^w) h_{t-1} + b (h_{t-1}^T a)^T + k v^T             decays per channel, or r other than k

reading o_t = scale h_t^T q_t. So ours, S_t = S_{t-1} (diag(alpha) - p r^T) + v k^T, is the second with p / alpha and
beta = 1 where r is k, and the third with a = -p and b = r otherwise. Rows are given in bfloat16, which these kernels
are made for; decays and states in float32.

Shapes: B batch, H heads, T tokens, `d` key width, `o` value width; fla has tokens before heads, and states `(d, o)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.memory.chunk import LOG_FLOOR


class Functions(NamedTuple):
    """The three kernels: `fla.ops.simple_gla.chunk_simple_gla`, `fla.ops.comba.chunk_comba` and
    `fla.ops.rwkv7.chunk_rwkv7`."""

    add: Callable[..., tuple[Tensor, Tensor]]
    correct: Callable[..., tuple[Tensor, Tensor]]
    channels: Callable[..., tuple[Tensor, Tensor]]


def functions() -> Functions:
    """Import fla's kernels.

    Raises:
        InputError: no CUDA device, or no fla-core that has these kernels.
    """
    if not torch.cuda.is_available():
        raise InputError("kernel='fla' needs a CUDA device, and there is none: use kernel='chunk'.")
    names = {"simple_gla": "chunk_simple_gla", "comba": "chunk_comba", "rwkv7": "chunk_rwkv7"}
    try:
        return Functions(*(getattr(importlib.import_module(f"fla.ops.{at}"), name) for at, name in names.items()))
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"kernel='fla' needs the package fla-core ({error}): install it with `pip install fla-core`, or use "
            "kernel='chunk'."
        ) from None


class Recurrence:
    """A twin of `memory.recurrence.recur` by kernels of fla's form.

    Args:
        kernels: who computes.
        rows: dtype that queries, keys and values are given in.
        accumulate: dtype of decays and states.
        device: type of device that the kernels run on.
    """

    def __init__(
        self,
        kernels: Functions,
        rows: torch.dtype = torch.bfloat16,
        accumulate: torch.dtype = torch.float32,
        device: str = "cuda",
    ):
        self.kernels, self.rows, self.accumulate, self.device = kernels, rows, accumulate, device

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_alpha: Tensor,
        erase: tuple[Tensor, Tensor] | None = None,
        state: Tensor | None = None,
        *,
        size: int = 64,
        floor: float = LOG_FLOOR,
        transposed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Reads `y (B, H, T, o)` and the state after the last token `(B, H, o, d)`, as `recur`, in the dtype of `v`.

        Rows are `(B, H, T, ...)`; `size` is the kernels' own affair.

        Raises:
            InputError: tensors elsewhere than on a CUDA device, or `transposed`.
        """
        if q.device.type != self.device:
            raise InputError(
                f"kernel='fla' runs on {self.device}, but the model is on {q.device.type}: move it, or use "
                "kernel='chunk'."
            )
        if transposed:
            raise InputError("kernel='fla' has no transposed reads: use kernel='chunk'.")
        channels = log_alpha.dim() == k.dim()
        log_alpha = log_alpha.to(self.accumulate).clamp_min(floor)
        if not channels:
            log_alpha = log_alpha.expand(k.shape[:-1])
            if erase is not None and erase[1] is not k:
                log_alpha, channels = log_alpha[..., None].expand_as(k), True
        shared = {"scale": 1.0, "initial_state": self._state(state), "output_final_state": True}
        y, last = (self._per_channel if channels else self._per_token)(q, k, v, log_alpha, erase, shared)
        return y.transpose(1, 2).to(v.dtype), last.mT.to(v.dtype)

    def _per_token(self, q, k, v, log_alpha, erase, shared) -> tuple[Tensor, Tensor]:
        g = log_alpha.transpose(1, 2).contiguous()
        if erase is None:
            return self.kernels.add(self._row(q), self._row(k), self._row(v), g, **shared)
        p = erase[0] * (-log_alpha).exp().unsqueeze(-1)
        return self.kernels.correct(*(self._row(x) for x in (q, k, v, p)), g, torch.ones_like(g), **shared)

    def _per_channel(self, q, k, v, log_alpha, erase, shared) -> tuple[Tensor, Tensor]:
        p, r = (torch.zeros_like(k),) * 2 if erase is None else erase
        w = log_alpha.transpose(1, 2).contiguous()
        return self.kernels.channels(self._row(q), w, *(self._row(x) for x in (k, v, -p, r)), **shared)

    def _row(self, x: Tensor) -> Tensor:
        """`(B, H, T, n)` as `(B, T, H, n)`."""
        return x.transpose(1, 2).to(self.rows).contiguous()

    def _state(self, state: Tensor | None) -> Tensor | None:
        return None if state is None else state.mT.to(self.accumulate).contiguous()
