"""Loss on fixed windows of a token store. B: windows, T: tokens of a window."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nestling.errors import InputError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    loss: float
    """Mean nats a predicted token."""
    by_position: Tensor
    """(T - 1,) float64: mean nats of the predictions made after 1, 2, ..., T - 1 tokens."""
    windows: int
    """Windows read."""

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss per byte of text, which does not depend on the tokenizer."""
        return self.loss / math.log(2) / bytes_per_token


def spread_windows(tokens: np.ndarray, length: int, windows: int) -> Tensor:
    """(B, T) int64: at most `windows` windows that do not overlap, spread evenly over all of `tokens (N,)`.

    Spread, because the first few thousand tokens may be a single file. The same ones at every call. Raises InputError
    when there are fewer tokens than one window.
    """
    if len(tokens) < length:
        raise InputError(
            f"sequence_length: {length} is longer than the {len(tokens)} tokens of the validation split; "
            "give a shorter one, or more data"
        )
    count = min(windows, len(tokens) // length)
    starts = [i * (len(tokens) - length) // max(1, count - 1) for i in range(count)]
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast for `precision="bfloat16"`, nothing for `"float32"`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode is put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(
    model: nn.Module, tokens: np.ndarray, length: int, windows: int, batch_size: int, precision: str = "float32"
) -> Evaluation:
    """Mean loss of `model` on `spread_windows(tokens, length, windows)`, `batch_size` windows at a time.

    `tokens (N,)` are ids of any integer type. Each window starts with an empty memory.
    """
    device = next(model.parameters()).device
    total = torch.zeros(length - 1, dtype=torch.float64)
    batches = spread_windows(tokens, length, windows).split(batch_size)
    with evaluating(model):
        for ids in batches:
            ids = ids.to(device)
            with autocast(device, precision):
                logits = model(ids, use_cache=False).logits[:, :-1]
            losses = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            total += losses.view(len(ids), -1).double().sum(0).cpu()
    count = sum(map(len, batches))
    return Evaluation(float(total.mean() / count), total / count, count)
