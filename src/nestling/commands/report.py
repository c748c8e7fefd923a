"""`nestling report`."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from nestling.commands import Command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Draw one HTML page from run folders: results, curves, levels, samples, configuration."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that `nestling train` or `nestling demo` wrote."""
    out: Path = Path("report.html")
    """The page; an earlier one is replaced."""

    def run(self) -> dict[str, Any]:
        """Where the page lies, and how many runs are on it."""
        from nestling.evaluate.report import report

        return {"page": str(report(self.runs, self.out)), "runs": len(self.runs)}

    def show(self, result: dict[str, Any]) -> str:
        """Where the page lies."""
        return f"The page of {result['runs']} run{'s' * (result['runs'] != 1)}: {Path(result['page']).resolve()}"
