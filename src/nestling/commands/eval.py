"""`nestling eval`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from nestling.commands import Command
from nestling.commands.table import listing, table
from nestling.errors import InputError
from nestling.evaluate.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Evaluate a model on lm-eval's tasks or on questions about long texts; tasks done are not run again."""

    folder: tyro.conf.Positional[Path | None] = None
    """A run folder, or a folder with a model and its tokenizer, ours or of transformers."""
    tasks: str = ",".join(TASKS)
    """Which tasks or groups, separated by commas; see --list."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only say which tasks there are."""
    data_dir: Path | None = None
    """Folder with the tasks' original files; by default those of lm-eval's tasks come from the hub."""
    limit: int | None = None
    """Only the first so many rows of each of lm-eval's tasks."""
    length: int | None = None
    """Tokens of prompt and answer in tasks of our own; by default what the files hold, whatever its length."""
    examples: int = 100
    """Examples of each task of our own, at most."""
    text: str = "english"
    """What hides needles and facts: a file, or a corpus as in nestling train."""
    batch_size: int = 16
    """Rows read together; 1 for contexts too long to be held."""
    max_length: int | None = None
    """Tokens of context at most; by default as many as the model takes, for ours any number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    out: Path | None = None
    """File of JSON lines to append to; by default eval.jsonl in the folder."""

    def run(self) -> dict[str, Any]:
        """What `nestling.evaluate.benchmarks.run` returns, or the tasks with what they are."""
        from nestling.evaluate.questions import GROUPS
        from nestling.evaluate.questions import TASKS as ASKED

        if self.list:
            groups = {name: f"all of {', '.join(task.name for task in group)}" for name, group in GROUPS.items()}
            return {"tasks": {name: task.about for name, task in (TASKS | ASKED).items()} | groups}
        groups = {name: [task.name for task in group] for name, group in GROUPS.items()}
        given = [name.strip() for name in self.tasks.split(",") if name.strip()]
        names = list(dict.fromkeys(one for name in given for one in groups.get(name, [name])))
        if not names:
            raise InputError(f"tasks: none is named; choose among {', '.join(TASKS)}, or see --list.")
        if self.folder is None:
            raise InputError("folder: none is given; give a run folder or a model folder.")
        if not self.folder.is_dir():
            raise InputError(f"folder: '{self.folder}' does not exist; give a run folder or a model folder.")
        return self._run(self.folder, names)

    def _run(self, folder: Path, names: Sequence[str]) -> dict[str, Any]:
        try:
            from nestling.evaluate.asked import Ask
            from nestling.evaluate.benchmarks import run
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "lm_eval":
                raise
            raise InputError("eval needs lm-eval, which isn't installed: pip install 'nestling[eval]'.") from None
        from nestling.train.machine import describe, pick_device

        device = pick_device(self.device)
        how: dict[str, Any] = {"data_dir": self.data_dir, "limit": self.limit, "batch_size": self.batch_size}
        how |= {"max_length": self.max_length, "machine": describe(device)}
        how |= {"ask": Ask(self.length, self.examples, self.text)}
        return run(folder, names, self._out(), device, **how)

    def show(self, result: dict[str, Any]) -> str:
        """The table, what to know of the rows, and where the results lie."""
        if "tasks" in result:
            return listing(result["tasks"])
        from nestling.evaluate.benchmarks import shown

        notes = [note for row in result["results"].values() for note in row["notes"]]
        lines = table(["task", "metric", "value", "standard error", "rows"], shown(result))
        return "\n".join([lines, "", *notes, f"results: {result['out']}"])

    def interrupted(self) -> str:
        """How to go on."""
        return f"interrupted; the same command goes on behind the last finished task, in {self._out()}"

    def _out(self) -> Path:
        folder = self.folder or Path()
        return folder / "eval.jsonl" if self.out is None else self.out
