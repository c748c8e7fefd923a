"""`nestling recipe`."""

import dataclasses
import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from nestling.commands import Command
from nestling.commands.table import listing, table
from nestling.errors import InputError
from nestling.recipes import RECIPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Command):
    """Make a table or figure of the paper, or a study of ours; runs that are done already are not run again."""

    name: tyro.conf.Positional[str] = ""
    """Which one; see --list."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only say which there are."""
    scale: Literal["cpu", "gpu", "paper"] = "cpu"
    """Minutes to an hour on two cores, tens of minutes on one card, or the original's sizes, whose cost is estimated
    before it starts."""
    out: Path | None = None
    """Folder of results and drawings; by default benchmarks/results in a source checkout, else runs/recipes."""

    def run(self) -> dict[str, Any]:
        """What `nestling.recipes.cells.Study` returns, or the recipes with what they are."""
        if self.list:
            return {"recipes": {name: about for name, (_, about) in RECIPES.items()}}
        if self.name not in RECIPES:
            said = f"'{self.name}' is unknown" if self.name else "none was named"
            raise InputError(f"name: {said}; choose among {', '.join(RECIPES)}.")
        module, _, function = RECIPES[self.name][0].partition(":")
        recipe = getattr(importlib.import_module(f"nestling.recipes.{module}"), function)
        if self.scale != "cpu":
            from nestling.recipes.scales import Scaled

            if not isinstance(recipe, Scaled):
                raise InputError(f"scale: '{self.name}' has no scale '{self.scale}'; leave it out.")
            recipe = partial(recipe, scale=self.scale)
        return recipe(
            results_folder() if self.out is None else self.out, lambda text: print(text, file=sys.stderr, flush=True)
        )

    def show(self, result: dict[str, Any]) -> str:
        """The table, its notes, and where results and drawing lie."""
        if "recipes" in result:
            return listing(result["recipes"])
        found = result["table"]
        failed = [f"failed: {reason}" for reason in result["failed"]]
        places = [f"{name}: {result[name]}" for name in ("results", "figure") if result[name]]
        return "\n".join(
            [table(found["columns"], found["rows"], found["title"]), "", *found["notes"], *failed, *places]
        )

    def interrupted(self) -> str:
        """How to go on."""
        return f"interrupted; nestling recipe {self.name} continues after the last finished run"


def results_folder() -> Path:
    """Where results lie unless another folder is named: benchmarks/results of a source checkout, else runs/recipes."""
    root = Path(__file__).resolve().parents[3]
    return root / "benchmarks/results" if (root / ".git").exists() else Path("runs/recipes")
