"""Tasks of our own: seeded examples and the scores of the papers they are from. One small file a family."""

from nestling.evaluate.questions.answering import answers, evaluate, surprise
from nestling.evaluate.questions.babilong import BABILONG
from nestling.evaluate.questions.kalamang import KALAMANG
from nestling.evaluate.questions.needles import NEEDLES
from nestling.evaluate.questions.recall import RECALL
from nestling.evaluate.questions.task import Example, Material, Task
from nestling.evaluate.questions.training import batch
from nestling.evaluate.questions.translation import TRANSLATION

GROUPS: dict[str, tuple[Task, ...]] = {
    "needles": tuple(NEEDLES),
    "babilong": tuple(BABILONG),
    "recall": tuple(RECALL),
    "translation": (*TRANSLATION, KALAMANG),
}
TASKS: dict[str, Task] = {task.name: task for group in GROUPS.values() for task in group}
"""By name; whoever is listed here inherits the tests of all tasks."""
IN_PROSE = {task.name for task in (*NEEDLES, *BABILONG)}
"""Those that hide something in a text."""
LANGUAGES = {task.name for task in TRANSLATION}
"""Those whose languages are made up, by the seed."""

__all__ = [
    "GROUPS",
    "IN_PROSE",
    "LANGUAGES",
    "TASKS",
    "Example",
    "Material",
    "Task",
    "answers",
    "batch",
    "evaluate",
    "surprise",
]
