"""`nestling demo`."""

import dataclasses
from pathlib import Path
from typing import Any

from nestling.commands import Command
from nestling.commands.table import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train Hope and a Transformer of equal size on the same text, compare them, draw one page. Again: it goes on."""

    out: Path = Path("runs/demo")
    """Folder of the page and the two runs."""
    data: str = "python"
    """Corpus: python, cpp, english, a file, a folder, or hub:NAME."""
    minutes: float = 5.0
    """About how long all of it may take; decides the number of steps."""
    steps: int | None = None
    """Optimizer steps of each model, in place of --minutes."""
    seed: int = 0
    """Decides initial parameters and data order."""
    size: str = "nano"
    """Preset of both models."""
    batch_size: int = 8
    """Sequences an optimizer step."""
    sequence_length: int = 256
    """Tokens a sequence."""

    def run(self) -> dict[str, Any]:
        """The result of `nestling.recipes.demo.demo`."""
        from nestling.recipes.demo import demo  # heavy, so imported here

        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del arguments["json"]
        return demo(**arguments)

    def show(self, result: dict[str, Any]) -> str:
        """The table, who is better at what, and where the page lies."""
        said = "\n".join(result["verdict"])
        about = f"One run of each; done in {result['seconds']:.0f} s. The page: {Path(result['page']).resolve()}"
        return f"{table(**result['table'])}\n\n{said}\n\n{about}"

    def interrupted(self) -> str:
        """How to go on."""
        return f"interrupted; the same command continues from the last checkpoints in {self.out}"
