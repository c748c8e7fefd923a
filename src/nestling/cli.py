"""The `nestling` program: `nestling COMMAND ...`. See `nestling.commands` for how a command is made.

Exit codes: 0, 2 for a user's mistake (one sentence on stderr), 130 for Ctrl-C.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence

import tyro

from nestling.commands import Command
from nestling.errors import InputError

COMMANDS = {
    "demo": "nestling.commands.demo:Demo",
    "train": "nestling.commands.train:Train",
    "generate": "nestling.commands.generate:Generate",
    "learn": "nestling.commands.learn:Learn",
    "levels": "nestling.commands.levels:Levels",
    "report": "nestling.commands.report:Report",
    "bench": "nestling.commands.bench:Bench",
    "recipe": "nestling.commands.recipe:Recipe",
    "doctor": "nestling.commands.doctor:Doctor",
}
"""Name -> `module:class`; the order is that of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default); returns the exit code.

    Unknown options and `--help` leave through tyro's SystemExit (2 and 0).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # theirs at every save would break up our one bar
    interrupted = "interrupted"
    try:
        command = _parse(arguments)
        interrupted = command.interrupted()
        result = command.run()
        print(json.dumps(result) if command.json else command.show(result), flush=True)
    except InputError as error:
        print(f"nestling: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nestling: {interrupted}", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str]) -> Command:
    if not arguments or arguments[0] not in COMMANDS:
        known = {name: _load(name) for name in COMMANDS}
        return tyro.extras.subcommand_cli_from_dict(known, args=arguments, prog="nestling", description=_ABOUT)
    name, rest = arguments[0], arguments[1:]
    command = tyro.cli(_load(name), args=rest, prog=f"nestling {name}")
    other = command.remembered()
    return command if other is None else tyro.cli(_load(name), args=rest, prog=f"nestling {name}", default=other)


def _load(name: str) -> type[Command]:
    module, _, attribute = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


_ABOUT = "Nested Learning: train, run and look at models that go on learning. `nestling COMMAND --help` explains one."


if __name__ == "__main__":
    sys.exit(main())
