"""Perplexity against context used (Fig. 10): the same tokens, predicted after more and more of what precedes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nestling.errors import InputError

SEGMENT = 2048


@torch.no_grad()
def loss_by_context(
    model: Any,
    tokens: np.ndarray,
    contexts: Sequence[int],
    targets: int = 64,
    windows: int = 16,
    batch_size: int = 1,
    segment: int = SEGMENT,
    end: int | None = None,
) -> dict[int, float]:
    """Mean nats a target token after each number of tokens before the first target.

    Args:
        model: a causal language model of ours.
        tokens: ids `(N,)` of any integer type; the windows are spread evenly over all of them.
        contexts: how many tokens are read before the targets, each at least 1, such as powers of two. Every number is
            read anew from an empty memory, in segments, so a model of constant state needs memory for one segment only.
        targets: tokens that are predicted in a window, the same ones for every context.
        windows: how many windows; fewer where they would overlap.
        batch_size: windows read at a time.
        segment: tokens read at a time.
        end: id of the token that ends a document; windows and their longest context then lie within one document.

    Raises:
        InputError: a number below 1, or no document (without `end`: all tokens) as long as the longest context and the
            targets.
    """
    for name, value in {"contexts": min(contexts, default=0), "targets": targets, "windows": windows}.items():
        if value < 1:
            raise InputError(f"{name}: {value} is too small; give at least 1.")
    starts = _starts(tokens, max(contexts), targets, windows, end)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        totals = dict.fromkeys(contexts, 0.0)
        for at in range(0, len(starts), batch_size):
            part = starts[at : at + batch_size]
            for context in contexts:
                ids = np.stack([tokens[start - context : start + targets] for start in part]).astype(np.int64)
                totals[context] += _loss(model, torch.from_numpy(ids), context, segment, device)
        return {context: total / len(starts) / targets for context, total in totals.items()}
    finally:
        model.train(training)


def _starts(tokens: np.ndarray, longest: int, targets: int, windows: int, end: int | None) -> list[int]:
    """First targets of the windows, evenly spread over all places that have room; no token is a target twice."""
    ends = np.array([len(tokens)]) if end is None else np.append(np.flatnonzero(tokens == end), len(tokens))
    begins = np.append(0, ends[:-1] + 1)
    first, places = begins + longest, np.maximum(ends - begins - longest - targets + 1, 0)
    ranks = np.cumsum(places // targets + (places % targets > 0))  # windows that a document has room for
    if ranks[-1] == 0:
        raise InputError(
            f"contexts: {longest} tokens and {targets} targets are more than any text has among {len(tokens)} tokens; "
            "give shorter contexts, or more data."
        )
    chosen = np.linspace(0, ranks[-1] - 1, min(windows, ranks[-1])).round().astype(int)
    documents = np.searchsorted(ranks, chosen, side="right")
    before = np.append(0, ranks)[documents]
    return [int(first[d] + targets * (rank - b)) for d, rank, b in zip(documents, chosen, before, strict=True)]


def _loss(model: Any, ids: Tensor, context: int, segment: int, device: torch.device) -> float:
    """Sum over rows of the nats of `ids[:, context:]`, `ids (B, context + targets)`."""
    cache, total = None, 0.0
    inputs = ids[:, :-1].to(device)
    for at in range(0, inputs.shape[1], segment):
        part = inputs[:, at : at + segment]
        first = max(context - 1 - at, 0)  # place in the segment that predicts the first target
        kept = max(part.shape[1] - first, 1)
        output = model(part, cache=cache, use_cache=True, logits_to_keep=kept)
        cache = output.cache
        if first < part.shape[1]:
            aim = ids[:, at + first + 1 : at + part.shape[1] + 1].to(device)
            total += cross_entropy(output.logits.flatten(0, 1).float(), aim.flatten(), reduction="sum").item()
    return total
