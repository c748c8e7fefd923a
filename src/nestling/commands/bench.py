"""`nestling bench`."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from nestling.commands import Command
from nestling.commands.table import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed and memory side by side: our models, transformers' Llama, and peers where they are installed."""

    contestants: tuple[str, ...] = ()
    """Only these (and the Transformer++, to which speeds are set in relation); none given: all."""
    out: Path | None = None
    """File of JSON lines to append to; by default that of a source checkout, if this is one."""
    limit: float = 40.0
    """Seconds a step may take before its contestant is left out of a length."""

    def run(self) -> dict[str, Any]:
        """The result of `nestling.recipes.bench.bench`."""
        from nestling.recipes.bench import bench, default_out
        from nestling.recipes.contestants import CONTESTANTS

        out = default_out() if self.out is None else self.out
        say = (lambda text: print(text, file=sys.stderr, flush=True)) if sys.stderr.isatty() else (lambda text: None)
        return bench(contestants=self.contestants or tuple(CONTESTANTS), limit=self.limit, out=out, say=say)

    def show(self, result: dict[str, Any]) -> str:
        """Tokens per second, ratios and memory, then what to know about them."""
        from nestling.recipes.bench import table as cells

        columns, rows, notes = cells(result)
        title = f"tokens per second, forward + backward, float32, 1 thread: {result['machine']['processor']}"
        return "\n".join([table(columns, rows, title), "", *notes])
