"""The tasks of Table 2, as lm-eval defines them; only where their rows come from is a choice.

A task is lm-eval's own file of prompts, targets and metrics. Its rows come from the hub, or from original files
(`nestling.evaluate.local`).
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.evaluate import local


@dataclass(frozen=True)
class Task:
    """Where lm-eval keeps a task, the rows that its authors publish, and the metrics that tables show."""

    file: str
    rows: int
    metrics: tuple[str, ...]

    @property
    def about(self) -> str:
        """What it is, in a few words."""
        return f"lm-eval's, {self.rows:,} rows: {', '.join(self.metrics)}"


TASKS = {
    "wikitext": Task("wikitext/wikitext.yaml", 62, ("word_perplexity", "bits_per_byte")),
    "lambada_openai": Task("lambada/lambada_openai.yaml", 5153, ("perplexity", "acc")),
    "piqa": Task("piqa/piqa.yaml", 1838, ("acc",)),
    "hellaswag": Task("hellaswag/hellaswag.yaml", 10042, ("acc_norm",)),
    "winogrande": Task("winogrande/default.yaml", 1267, ("acc",)),
    "arc_easy": Task("arc/arc_easy.yaml", 2376, ("acc",)),
    "arc_challenge": Task("arc/arc_challenge.yaml", 1172, ("acc_norm",)),
    "social_iqa": Task("siqa/siqa.yaml", 1954, ("acc",)),
    "boolq": Task("super_glue/boolq/default.yaml", 3270, ("acc",)),
}
"""In the order of the paper's table; the metrics are those it shows."""


@dataclass(frozen=True)
class Loaded:
    """lm-eval's task with its rows, and what to know of these."""

    task: Any
    notes: tuple[str, ...]


def check(names: Iterable[str], data_dir: Path | None = None) -> None:
    """Raise InputError for an unknown task, or one whose files are missing in `data_dir`."""
    from nestling.evaluate import questions  # slow to import

    for name in names:
        if name not in TASKS and name not in questions.TASKS:
            near = difflib.get_close_matches(name, [*TASKS, *questions.TASKS], n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise InputError(f"tasks: '{name}' is unknown: choose among {', '.join(TASKS)}, or see --list{hint}")
        if data_dir is not None and name in TASKS:
            local.locate(data_dir, name)


def source(name: str, data_dir: Path | None = None) -> str:
    """Names the rows of a task: `hub`, or a SHA-256 over the local files."""
    return "hub" if data_dir is None else local.load(data_dir, name).fingerprint


def load(name: str, data_dir: Path | None = None) -> Loaded:
    """The task `name` with rows from `data_dir`, or from the hub. Raises InputError where they cannot be read."""
    check([name], data_dir)
    if data_dir is None:
        task, notes = _from_hub(name), []
    else:
        found = local.load(data_dir, name)
        task, notes = _task(name, _replaced(name, found.rows)), [found.note]
    rows = len(task.eval_docs)
    if rows != TASKS[name].rows:
        notes.append(f"there are {rows:,} rows, but {TASKS[name].rows:,} are published.")
    return Loaded(task, tuple(f"{name}: {note}" for note in notes if note))


def _config(name: str) -> dict[str, Any]:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / TASKS[name].file)
    return {key: value for key, value in config.items() if key not in ("tag", "group")}


def _task(name: str, changes: dict[str, Any]) -> Any:
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config=_config(name) | changes)


def _replaced(name: str, rows: list[local.Row]) -> dict[str, Any]:
    """What to change in a task's configuration so that it has these rows to evaluate, and no others."""
    from datasets import Dataset

    config = _config(name)
    split = config.get("test_split") or config["validation_split"]
    other = {"validation_split": None} if config.get("test_split") else {}
    data = {split: Dataset.from_list(rows)}
    return {"custom_dataset": lambda **_: data, "training_split": None, "fewshot_split": None, **other}


def _from_hub(name: str) -> Any:
    try:
        return _task(name, {})
    except Exception as error:  # datasets, huggingface_hub and httpx raise types without a common base
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"tasks: the rows of {name} cannot be had from the hub ({type(error).__name__}: {reason}); check the "
            "network, or give data_dir, a folder with the original files."
        ) from error
