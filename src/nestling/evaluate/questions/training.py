"""Batches to train small models on the tasks themselves: examples of mixed lengths, the loss only on their answers.

B examples of a batch, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nestling.errors import InputError
from nestling.evaluate.questions.answering import encoded
from nestling.evaluate.questions.task import Example, Material, Task, dice


def batch(
    tasks: Sequence[Task], material: Material, seed: int, step: int, tokens: int, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`(input_ids, labels)`, each (B, T) int64; a pure function of its arguments.

    One of the tasks and one of the lengths are drawn, and as many examples as fit into `tokens` (at least one), each
    from a seed of its own. A row is prompt, target and the end of a document, then padding; labels are -100 but for the
    target and the end. Raises InputError without tasks or lengths, or where an example cannot be made.
    """
    if not tasks or not lengths:
        raise InputError("tasks, lengths: one of them is empty; give at least one task and one length.")
    chance = dice("train", seed, step)
    task, length = chance.choice(tasks), chance.choice(lengths)
    seeds = [chance.randrange(2**62) for _ in range(max(1, tokens // length))]
    return collate([next(task.examples(material, one, length)) for one in seeds], material)


def collate(examples: Sequence[Example], material: Material) -> tuple[Tensor, Tensor]:
    """`(input_ids, labels)` of examples, see `batch`."""
    end = material.tokenizer.eos_id
    rows = []
    for example in examples:
        prompt = encoded(material.tokenizer, example)
        target = torch.from_numpy(material.tokenizer.encode(example.target).astype(np.int64))
        rows.append((prompt, torch.cat([target, torch.tensor([end])])))
    longest = max(len(prompt) + len(target) for prompt, target in rows)
    ids, labels = torch.full((len(rows), longest), end), torch.full((len(rows), longest), -100)
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.cat([prompt, target])
        labels[row, len(prompt) : len(prompt) + len(target)] = target
    return ids, labels
