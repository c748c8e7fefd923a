"""What a model writes behind a prompt: greedy, prompts read segment by segment, so that a long one needs little memory.

B: prompts of a batch, T: tokens of a segment, V: vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from nestling.data import Tokenizer
from nestling.errors import InputError
from nestling.evaluate.questions.task import Example, Material, Scores, Task

SEGMENT = 4096
"""Tokens read at a time."""


def evaluate(model: Any, task: Task, material: Material, examples: Sequence[Example], batch_size: int = 1) -> Scores:
    """Measures of what `model` writes behind the prompts of `examples`, for instance the first of task.examples(...).

    With batch_size 1 a context is made while it is read. Raises InputError where there are no examples.
    """
    if not examples:
        raise InputError(f"examples: '{task.name}' has none here; give more data, or a greater length.")
    written: list[str] = []
    for at in range(0, len(examples), batch_size):
        part = examples[at : at + batch_size]
        written += [task.cut(text) for text in answers(model, material.tokenizer, part, task.room(material))]
    return task.summary(written, examples)


@torch.no_grad()
def answers(
    model: Any, tokenizer: Tokenizer, examples: Sequence[Example], new_tokens: int, segment: int = SEGMENT
) -> list[str]:
    """What the model writes behind each prompt: at most `new_tokens` tokens, up to the one that ends a document.

    Several prompts are padded on the left to the longest and read together; one alone is never held as a whole.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        if len(examples) == 1:
            parts = ((part[None], None) for part in stream(tokenizer, examples[0].pieces(), segment))
        else:
            parts = _padded([encoded(tokenizer, example) for example in examples], tokenizer.eos_id, segment)
        logits, cache = None, None
        for ids, mask in parts:
            mask = None if mask is None else mask.to(device)
            output = model(ids.to(device), attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[:, -1], output.cache
        return [tokenizer.decode(ids) for ids in _continued(model, logits, cache, new_tokens, tokenizer.eos_id)]
    finally:
        model.train(training)


@torch.no_grad()
def surprise(model: Any, tokenizer: Tokenizer, example: Example, segment: int = SEGMENT) -> float:
    """Nats of the example's target behind its prompt, all tokens of the target together."""
    training = model.training
    model.eval()
    try:
        device, logits, cache = next(model.parameters()).device, None, None
        for part in stream(tokenizer, example.pieces(), segment):
            output = model(part[None].to(device), cache=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[0], output.cache
        target = torch.from_numpy(tokenizer.encode(example.target).astype(np.int64)).to(device)
        assert logits is not None
        if len(target) > 1:
            logits = torch.cat([logits, model(target[None, :-1], cache=cache, use_cache=True).logits[0]])
        return cross_entropy(logits.float(), target, reduction="sum").item()
    finally:
        model.train(training)


def stream(tokenizer: Tokenizer, pieces: Iterable[str], segment: int) -> Iterator[Tensor]:
    """Ids `(T,)` int64 of the pieces, each encoded on its own, in segments of `segment` tokens; the last is shorter."""
    held: list[np.ndarray] = []
    size = 0
    for piece in pieces:
        if piece:
            held.append(tokenizer.encode(piece).astype(np.int64))
            size += len(held[-1])
        while size >= segment:
            joined = np.concatenate(held)
            yield torch.from_numpy(joined[:segment])
            held, size = [joined[segment:]], size - segment
    if size:
        yield torch.from_numpy(np.concatenate(held))


def encoded(tokenizer: Tokenizer, example: Example) -> Tensor:
    """Ids `(T,)` int64 of the whole prompt."""
    return torch.cat(list(stream(tokenizer, example.pieces(), SEGMENT)))


def _padded(prompts: Sequence[Tensor], end: int, segment: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(ids (B, T), mask (B, T)) of segments; the first holds all the padding, so it is longer where need be."""
    longest, shortest = max(map(len, prompts)), min(map(len, prompts))
    ids = torch.stack([pad(prompt, (longest - len(prompt), 0), value=end) for prompt in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(prompt) for prompt in prompts])
    first = min(longest, max(segment, longest - shortest + 1))
    yield ids[:, :first], mask[:, :first]
    for at in range(first, longest, segment):
        yield ids[:, at : at + segment], None


def _continued(model: Any, logits: Any, cache: Any, new_tokens: int, end: int) -> list[list[int]]:
    """Greedy ids of every row up to `end`."""
    rows = []
    for _ in range(new_tokens):
        rows.append(logits.argmax(-1))
        done = torch.stack(rows).eq(end).any(0)
        if bool(done.all()) or len(rows) == new_tokens:
            break
        output = model(rows[-1][:, None], cache=cache, use_cache=True)
        logits, cache = output.logits[:, -1], output.cache
    columns = torch.stack(rows, 1).tolist() if rows else []
    return [list(itertools.takewhile(lambda token: token != end, column)) for column in columns]
