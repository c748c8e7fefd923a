"""The commands of the `nestling` program, one light module each.

A command is a dataclass: its fields are the arguments, its docstring the help, `run` does the work and returns what
`--json` prints, `show` says the same to a person. To add one, write `commands/NAME.py`:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Demo(Command):
        \"\"\"Train Hope and a Transformer, compare them, draw.\"\"\"

        out: Path = Path("runs/demo")
        \"\"\"Folder of the page and the two runs.\"\"\"

        def run(self) -> dict[str, Any]:
            from nestling.recipes.demo import demo  # heavy, so imported here

            return demo(self.out)

and add the line `"demo": "nestling.commands.demo:Demo"` to the table in `nestling.cli`. `nestling --help` imports every
command's module, so nothing that takes time (torch, transformers) may be imported at its top. Progress goes to stderr,
a user's mistake is an InputError.
"""

import abc
import dataclasses
from typing import Any, Self

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(abc.ABC):
    """Base of every command."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""

    @abc.abstractmethod
    def run(self) -> dict[str, Any]:
        """Do the work; returns what is to be known of it, JSON-able."""

    def show(self, result: dict[str, Any]) -> str:
        """What a person reads: one `name  value` line each, unless a command knows better."""
        width = max(map(len, result), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in result.items())

    def remembered(self) -> Self | None:
        """These arguments with other defaults (those of the run being resumed); None to keep the usual ones."""
        return None

    def interrupted(self) -> str:
        """The sentence for a user who pressed Ctrl-C."""
        return "interrupted"
