"""Tasks of our own (`nestling.evaluate.questions`) on any model, as `benchmarks` runs lm-eval's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from nestling.data.prose import open_prose
from nestling.errors import InputError
from nestling.evaluate.bootstrap import standard_error
from nestling.evaluate.harness import CausalLM
from nestling.evaluate.questions import IN_PROSE, LANGUAGES, TASKS, Example, Material, Task, answers
from nestling.models.base import NestlingForCausalLM


@dataclass(frozen=True)
class Ask:
    """Which examples.

    length: tokens of prompt and answer; None: what files hold, whatever its length.
    examples: the first so many.
    text: what hides needles and facts, see `nestling.data.prose.open_prose`.
    """

    length: int | None = None
    examples: int = 100
    text: str = "english"


@dataclass(frozen=True)
class Posed:
    """A task with its examples; source: names them, and a long context's text."""

    task: Task
    material: Material
    examples: Sequence[Example]
    source: str
    notes: tuple[str, ...]


class _Counting:
    """A tokenizer of transformers that counts tokens for a task."""

    def __init__(self, lm: CausalLM):
        self.lm = lm

    def encode(self, text: str) -> np.ndarray:
        """Ids `(tokens,)`."""
        return np.array(self.lm.tok_encode(text, add_special_tokens=False))


def pose(lm: CausalLM, name: str, ask: Ask, data_dir: Path | None) -> Posed:
    """The examples of a task for a model's tokenizer. Raises InputError: a missing length or file, or no example."""
    own = data_dir / name if data_dir is not None and (data_dir / name).is_dir() else data_dir
    tokenizer: Any = lm.tokenizer if hasattr(lm.tokenizer, "eos_id") else _Counting(lm)
    task, material = TASKS[name], Material(tokenizer, open_prose(ask.text) if name in IN_PROSE else None, own)
    try:
        examples = list(islice(_examples(task, material, ask.length), ask.examples))
    except InputError as error:  # what they call data is data_dir here
        text = str(error)
        raise InputError(f"data_dir{text.removeprefix('data')}" if text.startswith("data: ") else text) from None
    if not examples:
        raise InputError(f"length: no example of '{name}' is as short as {ask.length} tokens; give more.")
    few = f"{name}: there are {len(examples)} examples, not {ask.examples}."
    return Posed(task, material, examples, _source(examples, material), (few,) if len(examples) < ask.examples else ())


def _examples(task: Task, material: Material, length: int | None) -> Iterator[Example]:
    """Those of seed 0; where a seed makes the languages, one of each seed."""
    if task.name in LANGUAGES:
        return (next(task.examples(material, seed, length)) for seed in count())
    return task.examples(material, 0, length)


def _source(examples: Sequence[Example], material: Material) -> str:
    """SHA-256 over all that is asked; where contexts are made while they are read, over the text they are made from."""
    total = hashlib.sha256()
    for example in examples:
        total.update(repr((example.question, example.answers, dict(example.about))).encode())
        total.update(repr(example.context).encode() if isinstance(example.context, tuple) else b"")
    if material.prose is not None and not isinstance(examples[0].context, tuple):
        total.update(np.ascontiguousarray(material.prose).data)
    return total.hexdigest()


def measure(lm: CausalLM, posed: Posed) -> dict[str, Any]:
    """Metrics, each with `_stderr` beside it, rows and notes."""
    task, lm.label = posed.task, posed.task.name
    pairs = list(zip((task.cut(text) for text in _written(lm, posed)), posed.examples, strict=True))
    scores = [task.score(text, example) for text, example in pairs]
    metrics: dict[str, float | None] = {}
    for name, value in task.summary(*zip(*pairs, strict=True)).items():
        metrics[name] = value
        if name in scores[0]:
            metrics[f"{name}_stderr"] = standard_error(mean, [score[name] for score in scores])
        else:
            metrics[f"{name}_stderr"] = standard_error(_together(task, name), pairs)
    return {"metrics": metrics, "rows": len(pairs), "notes": list(posed.notes)}


def _together(task: Task, name: str) -> Callable[[list], float]:
    """A measure of the whole corpus."""
    assert task.corpus is not None
    whole = task.corpus
    return lambda pairs: whole([text for text, _ in pairs], [example for _, example in pairs])[name]


def _written(lm: CausalLM, posed: Posed) -> Iterator[str]:
    """What the model writes; ours without a maximum length read prompts segment by segment, so of any length."""
    new, stop = posed.task.room(posed.material), list(posed.task.stop)
    if lm.max_length is None and isinstance(lm.model, NestlingForCausalLM):
        with lm.bar(len(posed.examples)) as bar:
            for at in range(0, len(posed.examples), lm.batch_size):
                part = posed.examples[at : at + lm.batch_size]
                yield from answers(lm.model, lm.tokenizer, part, new)
                bar.update(len(part))
    else:
        how = {"until": stop, "max_gen_toks": new}
        asked = (Instance("generate_until", {}, (example.prompt, how), i) for i, example in enumerate(posed.examples))
        yield from lm.generate_until(list(asked))
