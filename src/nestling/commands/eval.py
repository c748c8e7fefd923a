"""`nestling eval`."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

from nestling.commands import Command
from nestling.commands.table import table
from nestling.errors import InputError
from nestling.evaluate.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Evaluate a model on language modeling and common-sense reasoning with lm-eval; tasks done are not run again."""

    folder: tyro.conf.Positional[Path]
    """A run folder, or a folder with a model and its tokenizer, ours or of transformers."""
    tasks: str = ",".join(TASKS)
    """Which, separated by commas."""
    data_dir: Path | None = None
    """Folder with the tasks' original files; by default they come from the hub."""
    limit: int | None = None
    """Only the first so many rows of each task."""
    batch_size: int = 16
    """Rows read together."""
    max_length: int | None = None
    """Tokens of context at most; by default as many as the model takes, for ours any number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    out: Path | None = None
    """File of JSON lines to append to; by default eval.jsonl in the folder."""

    def run(self) -> dict[str, Any]:
        """What `nestling.evaluate.benchmarks.run` returns."""
        names = list(dict.fromkeys(name.strip() for name in self.tasks.split(",") if name.strip()))
        if not names:
            raise InputError(f"tasks: none is named; choose among {', '.join(TASKS)}.")
        if not self.folder.is_dir():
            raise InputError(f"folder: '{self.folder}' does not exist; give a run folder or a model folder.")
        try:
            from nestling.evaluate.benchmarks import run
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "lm_eval":
                raise
            raise InputError("eval needs lm-eval, which isn't installed: pip install 'nestling[eval]'.") from None
        from nestling.train.machine import describe, pick_device

        device = pick_device(self.device)
        how = {"data_dir": self.data_dir, "limit": self.limit, "batch_size": self.batch_size}
        how |= {"max_length": self.max_length, "machine": describe(device)}
        return run(self.folder, names, self._out(), device, **how)

    def show(self, result: dict[str, Any]) -> str:
        """The table, what to know of the rows, and where the results lie."""
        from nestling.evaluate.benchmarks import shown

        notes = [note for row in result["results"].values() for note in row["notes"]]
        lines = table(["task", "metric", "value", "standard error", "rows"], shown(result))
        return "\n".join([lines, "", *notes, f"results: {result['out']}"])

    def interrupted(self) -> str:
        """How to go on."""
        return f"interrupted; the same command goes on behind the last finished task, in {self._out()}"

    def _out(self) -> Path:
        return self.folder / "eval.jsonl" if self.out is None else self.out
