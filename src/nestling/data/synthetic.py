"""The moded store: a small task in which what a write does depends on a mode, so adapting in context pays.

Every token is one operation: a write of a value under a key, a read of a key, or, at every `period`-th position from
the first on, the setting of mode 0 or 1. Ids, for K keys and V values:

    [0, KV)                 write value v under key k: k V + v
    [KV, KV + K)            read key k: KV + k
    [KV + K, KV + K + 2)    set mode m: KV + K + m
    [KV + K + 2, ... + V)   answer v, in labels only: KV + K + 2 + v

A causal language model scores its prediction at position t against `labels[t + 1]`, so the answer to a read at t
stands at `labels[t + 1]`, whatever operation comes next in the input; every other label is -100. Answers never enter
the input. A read of a key that holds nothing yet, and one at the last position, is not scored.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nestling.data.batches import random_words
from nestling.errors import InputError

Mode = Literal["enable", "shift-value", "shift-key", "control"]


def moded_store_vocab(keys: int, values: int) -> int:
    """Number of ids: writes, reads, two modes, answers."""
    return keys * values + keys + 2 + values


def moded_store(
    seed: int, step: int, batch_size: int, length: int, keys: int, values: int, mode: Mode = "enable", period: int = 16
) -> tuple[Tensor, Tensor]:
    """`(input_ids, labels)`, each `(batch_size, length)` int64; a pure function of its arguments.

    Half of the operations write, half read; keys, values and modes are uniform. In mode 1, with `enable` writes are
    ignored; with `shift-value` they store (v + 1) mod V; with `shift-key` they store under (k + 1) mod K; with
    `control` the mode changes nothing. Reads never depend on the mode. Raises InputError for sizes below 1
    (length, values and period below 2), or another mode.
    """
    _check(mode, batch_size=(batch_size, 1), length=(length, 2), keys=(keys, 1), values=(values, 2), period=(period, 2))
    words = random_words(seed, step, 0, 4 * batch_size * length).reshape(4, batch_size, length)
    key, value, write, flag = (
        (word % np.uint64(n)).astype(np.int64) for word, n in zip(words, (keys, values, 2, 2), strict=True)
    )
    read, first_mode = keys * values, keys * values + keys
    ids = np.where(write, key * values + value, read + key)
    ids[:, ::period] = first_mode + flag[:, ::period]
    labels = np.full_like(ids, -100)
    store = np.full((batch_size, keys), -1)
    rows, current = np.arange(batch_size), flag[:, 0]
    for t in range(length - 1):
        if t % period == 0:
            current = flag[:, t]
            continue
        found = store[rows, key[:, t]]
        labels[:, t + 1] = np.where((write[:, t] == 0) & (found >= 0), first_mode + 2 + found, -100)
        target = (key[:, t] + (current if mode == "shift-key" else 0)) % keys
        stored = (value[:, t] + (current if mode == "shift-value" else 0)) % values
        done = (write[:, t] == 1) & ((current == 0) if mode == "enable" else True)
        store[rows[done], target[done]] = stored[done]
    return torch.from_numpy(ids), torch.from_numpy(labels)


def _check(mode: str, **sizes: tuple[int, int]) -> None:
    if mode not in get_args(Mode):
        raise InputError(f"mode: '{mode}' is unknown; give one of {', '.join(get_args(Mode))}.")
    for name, (size, least) in sizes.items():
        if size < least:
            raise InputError(f"{name}: {size} is too small; give at least {least}.")
