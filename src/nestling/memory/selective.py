"""The selective state space S6 (Mamba, arXiv 2312.00752, formulas 2a-b, Sec. 3.2), whose inputs choose step and rows:

    h_t = exp(dt_t A) * h_{t-1} + B_t (dt_t x_t)^T
    y_t = h_t^T C_t + D * x_t

It is a linear memory that writes value `dt x` under key `B` by the Hebbian rule and is read by query `C`. A decay of
its own for every entry sets it apart: nothing factors into products of keys and queries, and a parallel scan by
doubling costs more than it saves. So the tokens of a chunk share the exponentials, the outer products and the reads,
and only `h = a * h + u` goes from token to token, for all sequences, channels and states at once. Decays are
exponentials of negative numbers that nothing is divided by, so they may be as small as they like. The backward pass is
written by hand. It computes a chunk's states again from the one before it, so that of all states (B, T, N, E) one a
chunk is kept. No second derivatives.

Shapes: batch B, tokens T, channels E, states N of each channel. Rates A (N, E) are negative and steps dt (B, T, E) are
not; a token with dt = 0 passes the state unchanged.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, token by token; arguments and result as in `selective`."""
    h = x.new_zeros(x.shape[0], *A.shape) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, None] * A) * h + B[:, t, :, None] * (dt[:, t] * x[:, t])[:, None]
        outputs.append((C[:, t, :, None] * h).sum(1) + D * x[:, t])
    return torch.stack(outputs, 1), h


def selective(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None, *, size: int = 16
) -> tuple[Tensor, Tensor]:
    """The same chunk by chunk.

    Args:
        x: inputs (B, T, E).
        dt: steps (B, T, E), not negative.
        A: rates (N, E), negative.
        B, C: keys and queries (B, T, N).
        D: what passes by the state (E,).
        state: `h_0` (B, N, E); None for zero.
        size: tokens a chunk, a matter of speed and memory only.

    Returns:
        `y` (B, T, E) and `h_T` (B, N, E).
    """
    state = x.new_zeros(x.shape[0], *A.shape) if state is None else state
    y, last, _ = _run(dt * x, dt, A, B, C, state, size)
    return torch.addcmul(y, D, x), last


def _chunks(length: int, size: int) -> Iterator[tuple[int, slice]]:
    """Number and place of every chunk."""
    return ((i, slice(start, start + size)) for i, start in enumerate(range(0, length, size)))


def _states(v: Tensor, dt: Tensor, A: Tensor, B: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states (B, tokens, N, E) of a chunk."""
    decay = (dt.unsqueeze(2) * A).exp_()
    h = B.unsqueeze(3) * v.unsqueeze(2)
    for t in range(h.shape[1]):
        before = h[:, t].addcmul_(decay[:, t], before)
    return decay, h


# Opaque to the compiler, which would unroll the loops over tokens.
@torch.library.custom_op("nestling::selective", mutates_args=())
def _run(
    v: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads (B, T, E) without D, the last state, and the states (chunks, B, N, E) before every chunk; v = dt * x."""
    y, starts = _shapes(v, state, size)
    for i, now in _chunks(v.shape[1], size):
        starts[i] = state
        h = _states(v[:, now], dt[:, now], A, B[:, now], state)[1]
        y[:, now] = (C[:, now].unsqueeze(2) @ h).squeeze(2)
        state = h[:, -1]
    return y, state.clone(), starts


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _shapes(v: Tensor, state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Room for the reads and for the states before the chunks."""
    return _like(v), state.new_empty(-(-v.shape[1] // size), *state.shape)


@torch.library.custom_op("nestling::selective_backward", mutates_args=())
def _back(
    dy: Tensor, carry: Tensor, v: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `_run`'s first six arguments; `carry` is the gradient of the last state."""
    dv, ddt, dA, dB, dC = (_like(x) for x in (v, dt, A, B, C))
    dA.zero_()
    for i, now in reversed(list(_chunks(v.shape[1], size))):
        dt_, v_, dy_ = dt[:, now].unsqueeze(2), v[:, now].unsqueeze(3), dy[:, now].unsqueeze(3)
        decay, h = _states(v[:, now], dt[:, now], A, B[:, now], starts[i])
        dC[:, now] = (h @ dy_).squeeze(3)
        dh = C[:, now].unsqueeze(3) * dy_.mT
        for t in reversed(range(dh.shape[1])):
            carry = decay[:, t].mul_(dh[:, t].add_(carry))
        dB[:, now] = (dh @ v_).squeeze(3)
        dv[:, now] = (B[:, now].unsqueeze(2) @ dh).squeeze(2)
        # The gradient of log a, in place of what each state passed back.
        decay[:, 1:].mul_(h[:, :-1])
        carry = carry.clone()
        decay[:, 0].mul_(starts[i])
        torch.sum(torch.mul(decay, A, out=h), 2, out=ddt[:, now])
        dA += decay.mul_(dt_).sum((0, 1))
    return dv, ddt, dA, dB, dC, carry


@_run.register_fake
def _(v, dt, A, B, C, state, size):
    y, starts = _shapes(v, state, size)
    return y, _like(state), starts


@_back.register_fake
def _(dy, carry, v, dt, A, B, C, starts, size):
    return tuple(_like(x) for x in (v, dt, A, B, C, carry))


def _keep(ctx, inputs, output) -> None:
    *tensors, _, ctx.size = inputs  # the state before the first chunk is among the output
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, last, _):
    v, *others, starts = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    last = torch.zeros_like(starts[0]) if last is None else last
    return *_back(dy, last, v, *others, starts, ctx.size), None


_run.register_autograd(_backward, setup_context=_keep)
