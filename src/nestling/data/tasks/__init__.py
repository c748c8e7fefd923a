"""Synthetic tasks with the settings of the papers that brought them up, by name; see task.py for what they give.

task = TASKS["mqar"]
ids, targets, scored = task(seed=0, step=0, batch_size=32)
harder = dataclasses.replace(task, length=256, pairs=16)
"""

from nestling.data.tasks.compression import Compression
from nestling.data.tasks.copying import SelectiveCopying
from nestling.data.tasks.formal import LANGUAGES, Formal
from nestling.data.tasks.fuzzy_recall import FuzzyRecall
from nestling.data.tasks.memorization import Memorization
from nestling.data.tasks.mqar import MQAR
from nestling.data.tasks.recall import Recall
from nestling.data.tasks.task import Examples, Task

MAD: dict[str, Task] = {
    "compression": Compression(),
    "in-context recall": Recall(),
    "fuzzy recall": FuzzyRecall(),
    "noisy recall": Recall(vocab_size=32, noise_vocab=16, noise=0.2),
    "selective copying": SelectiveCopying(),
    "memorization": Memorization(),
}
"""MAD's six, with its baseline settings."""
TASKS: dict[str, Task] = MAD | {"mqar": MQAR()} | {name: Formal(name) for name in LANGUAGES}

__all__ = ["LANGUAGES", "MAD", "TASKS", "Examples", "Task"]
