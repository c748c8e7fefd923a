"""`nestling report`."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro

from nestling.commands import Command
from nestling.commands.recipe import results_folder
from nestling.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make one HTML page from studies and runs: tables, figures, curves, configuration, how to do it again."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Names of recipes, files of their results, folders of such files, and folders that `nestling train` or `nestling
    demo` wrote, in any mixture; by default the results of all recipes (benchmarks/results in a source checkout)."""
    out: Path = Path("report.html")
    """The page; an earlier one is replaced."""

    def run(self) -> dict[str, Any]:
        """Where the page lies, what is on it, and which files of a folder are not because they are of no recipe."""
        from nestling.evaluate.report import report
        from nestling.recipes.gather import gather

        home = results_folder()
        if not self.runs and not home.is_dir():
            raise InputError(f"runs: none was given, and there are no results in '{home}'; give a folder or a recipe.")
        told = gather(self.runs or [home], home, lambda text: print(text, file=sys.stderr, flush=True))
        return {
            "page": str(report(told.runs, self.out, told.studies)),
            "runs": len(told.runs),
            "studies": {study.name: study.state for study in told.studies},
            "left_out": [str(path) for path in told.strange],
        }

    def show(self, result: dict[str, Any]) -> str:
        """Where the page lies, and what is not on it."""
        counts = {"run": result["runs"], "study": len(result["studies"])}
        plural = {"run": "runs", "study": "studies"}
        said = " and ".join(f"{n} {word if n == 1 else plural[word]}" for word, n in counts.items() if n)
        left = [f"left out, of no recipe: {path}" for path in result["left_out"]]
        return "\n".join([f"The page of {said}: {Path(result['page']).resolve()}", *left])
